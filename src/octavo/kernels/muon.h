/* Muon's elementwise work before and after the iterations, a pass each: from gradients to squares in bf16, and from these
   to the weights. `octavo.training.optimizers.muon` has the method, and the plain code, whose results have the same bits.

   All matrices of the optimizer are one list of squares (N, C, C). A chunk is one square. */

typedef struct {
    float *weight, *gradient, *momentum; /* (rows, columns), multiples of C */
    int64_t columns;
    int64_t first; /* number of its first square, among those of all matrices */
} MuonMatrix;

typedef struct {
    int64_t N, C;                     /* C is a multiple of LANES */
    int64_t count;                    /* of matrices */
    const MuonMatrix *matrices;
    uint16_t *squares;                /* (N, C, C) */
    float momentum, gradient_weight;  /* the second is 1 - momentum, rounded once */
    float decay, learning_rate;       /* weights are multiplied by `decay` before the update */
} Muon;

typedef struct { const MuonMatrix *matrix; long offset; } MuonSquare;

/* The matrix that a square belongs to, and the place of its first number there. */
static MuonSquare find_square(const Muon *a, long square)
{
    const MuonMatrix *matrix = a->matrices + a->count - 1;
    while (matrix->first > square) matrix--;
    const long place = square - matrix->first, per_row = matrix->columns / a->C;
    return (MuonSquare){matrix, (place / per_row * matrix->columns + place % per_row) * a->C};
}

/* a * b + c, rounded once if the processor can, as in PyTorch's vectors. */
ALWAYS_INLINE floats fused_multiply_add(float a, floats b, floats c)
{
#if defined __AVX512F__
    return (floats)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif defined __AVX2__ && defined __FMA__
    return (floats)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* As torch.lerp computes it. */
ALWAYS_INLINE floats interpolate(floats start, floats end, float weight)
{
    const int is_small = weight < .5f;
    return fused_multiply_add(is_small ? weight : weight - 1.f, end - start, is_small ? start : end);
}

static void muon_momentum_chunk(const void *argument, long square)
{
    const Muon a[1] = {*(const Muon *)argument};
    const MuonSquare found = find_square(a, square);
    const MuonMatrix matrix = *found.matrix;
    for (long row = 0; row < a->C; row++)
        for (long c = 0; c < a->C; c += LANES) {
            const long i = found.offset + row * matrix.columns + c;
            const floats gradient = load(matrix.gradient + i);
            const floats mean = interpolate(load(matrix.momentum + i), gradient, a->gradient_weight);
            store(matrix.momentum + i, mean);
            store_some(a->squares, 1, (square * a->C + row) * a->C + c, LANES, interpolate(gradient, mean, a->momentum));
        }
}

/* Updates the running means of the gradients, and writes them with Nesterov's look-ahead to the squares. */
EXPORT void muon_momentum(const Muon *a, int threads) { parallel_for(muon_momentum_chunk, a, a->N, threads); }

static void muon_update_chunk(const void *argument, long square)
{
    const Muon a[1] = {*(const Muon *)argument};
    const MuonSquare found = find_square(a, square);
    const MuonMatrix matrix = *found.matrix;
    for (long row = 0; row < a->C; row++)
        for (long c = 0; c < a->C; c += LANES) {
            float *weight = matrix.weight + found.offset + row * matrix.columns + c;
            const floats update = load_as_floats(a->squares, 1, (square * a->C + row) * a->C + c);
            store(weight, fused_multiply_add(-a->learning_rate, update, load(weight) * a->decay));
        }
}

/* Applies the squares, which are the updates now, to the weights. */
EXPORT void muon_update(const Muon *a, int threads) { parallel_for(muon_update_chunk, a, a->N, threads); }
