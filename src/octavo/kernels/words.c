/* The ids of the words of a text, from a hash table: computes what `WordCache` in src/octavo/data/encoder.py does.

   `find_words` gives each word of a text its number, and new words the next free numbers. Their ids are then computed
   in Python, all at once, and `copy_ids` joins the ids of all words. `WordTable` of src/octavo/data/word_table.py calls
   these functions and allocates all arrays.

   Axis letters: L bytes of a text (in a WordTable, of its words), W words of a text, N numbers given to words. */

#include <stdint.h>
#include <string.h>

typedef struct { uint32_t hash, number, start, length; } Slot; /* number 0: free */
typedef struct {
    int64_t slots_count, longest, max_kept; /* a power of two; bytes of the longest word that is kept; most words kept */
    int64_t N, kept, L; /* numbers given to words; words that are kept; bytes of the words that are kept */
    Slot *slots; uint8_t *bytes; /* (slots_count,), (L,) */
} WordTable;

/* Whether the text up to `end` ends with a whitespace character of several bytes. A token can span it and a space, so
   the text is not cut between them. */
static int ends_with_multibyte_space(const uint8_t *text, const uint8_t *end)
{
    const uint8_t last = end[-1];
    if (last < 0x80) return 0;
    if (end - text >= 2 && end[-2] == 0xC2) return last == 0x85 || last == 0xA0;
    if (end - text < 3) return 0;
    switch (end[-3] << 8 | end[-2]) {
    case 0xE19A: return last == 0x80;
    case 0xE280: return last <= 0x8A || last == 0xA8 || last == 0xA9 || last == 0xAF;
    case 0xE281: return last == 0x9F;
    case 0xE380: return last == 0x80;
    default: return 0;
    }
}

/* The number of a word, which is a new one if the table does not have the word. Long words are always new. */
static uint32_t number_word(WordTable *t, const uint8_t *word, uint32_t length, uint32_t hash)
{
    const int64_t mask = t->slots_count - 1;
    int64_t i = hash & mask;
    for (; t->slots[i].number; i = (i + 1) & mask) {
        const Slot *slot = t->slots + i;
        if (slot->hash == hash && slot->length == length && !memcmp(t->bytes + slot->start, word, length))
            return slot->number;
    }
    if (length <= t->longest && t->kept < t->max_kept) {
        t->slots[i] = (Slot){hash, t->N, t->L, length};
        memcpy(t->bytes + t->L, word, length);
        t->L += length;
        t->kept++;
    }
    return t->N++;
}

/* Cuts a text as `split_words` does. Writes the number of each word (W,), and where each new word starts and ends in the
   text (at most W, 2). Returns W. The byte 0xFF is the word 0. */
int64_t octavo_find_words(WordTable *t, const uint8_t *text, int64_t L, uint32_t *numbers, uint32_t *new_words)
{
    const uint8_t *at = text, *const end = text + L;
    int64_t W = 0;
    while (at < end) {
        if (*at == 0xFF) {
            numbers[W++] = 0;
            at++;
            continue;
        }
        const uint8_t *const start = at;
        uint32_t hash = 2166136261u; /* FNV-1a */
        int is_white = 1; /* whether the byte before `at` is ASCII whitespace */
        do {
            const int is_space = *at == ' ' || *at == '\n';
            if (is_space && !is_white && !ends_with_multibyte_space(text, at)) break;
            is_white = is_space || (*at >= '\t' && *at <= '\r');
            hash = (hash ^ *at++) * 16777619u;
        } while (at < end && *at != 0xFF);
        const int64_t N = t->N;
        numbers[W] = number_word(t, start, at - start, hash ^ hash >> 15);
        if (numbers[W++] == N) {
            *new_words++ = start - text;
            *new_words++ = at - text;
        }
    }
    return W;
}

/* Joins the ids of words: those of word n end at `ends[n]`, in bytes, and begin where those of word n - 1 end. Returns
   the number of bytes. Up to 15 bytes after the last id of either array are read and written. */
int64_t octavo_copy_ids(const uint32_t *numbers, int64_t W, const uint32_t *ends, const uint8_t *ids, uint8_t *out)
{
    uint8_t *to = out;
    for (int64_t w = 0; w < W; w++) {
        const uint32_t start = numbers[w] ? ends[numbers[w] - 1] : 0, size = ends[numbers[w]] - start;
        memcpy(to, ids + start, 16); /* a constant size is one instruction, and almost always enough */
        if (size > 16) memcpy(to + 16, ids + start + 16, size - 16);
        to += size;
    }
    return to - out;
}
