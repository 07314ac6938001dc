"""What a model costs, before it is run: parameters and FLOPs, by formula."""

from octavo.settings import ModelSettings


def parameters(settings: ModelSettings) -> int:
    """All parameters, the tied head counted once."""
    C, V, T, bias = settings.n_embd, settings.vocab_size, settings.block_size, settings.bias
    norm = C * (1 + bias)
    block = 2 * norm + 12 * C * C + bias * 9 * C
    return V * C + T * C + settings.n_layer * block + norm


def flops_per_token(settings: ModelSettings) -> int:
    """FLOPs of forward and backward for one token of training.

    Six for each weight that multiplies (position embeddings only add), and 12 n_layer block_size n_embd for
    attention's two products over the full square: PaLM (Chowdhery et al., 2022), appendix B.
    """
    weights = settings.n_layer * 12 * settings.n_embd**2 + settings.vocab_size * settings.n_embd
    return 6 * weights + 12 * settings.n_layer * settings.block_size * settings.n_embd
