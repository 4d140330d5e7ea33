"""A head start for a small Llama: the two-layer copying circuit (Olsson et al. 2022) in its initial weights.

In layer 0, heads 0 and 1 attend to the previous token and the one before it, and write its identity into a subspace of their own.
In layer 1, head 0 attends to places whose previous token is the current one, and copies the token there. A small model needs
millions of tokens to find this; training then adapts it. The model stays an ordinary Llama.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

CONSTANT = 0.1  # last embedding dimension of every token: the input of the position heads
MATCHED = 28  # dimensions of a token's identity that are compared, in the slow pairs of the rotary embedding
SHARPNESS = 9.0


def install_circuit(model: LlamaForCausalLM, seed: int) -> None:
    """Write the circuit into a freshly initialised model with at least two layers and heads of size 64."""
    hidden = model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1, generator=generator))[0]
    basis = torch.nn.functional.pad(basis, (0, 1))  # (H - 1, H): rows orthonormal, blind to the constant dimension
    identity, previous, second = basis[:MATCHED], basis[MATCHED : 2 * MATCHED], basis[2 * MATCHED : 3 * MATCHED]
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, -1] = CONSTANT
        model.lm_head.weight.copy_(embedding)
        model.lm_head.weight[:, -1] = 0
        for layer in model.model.layers:  # damps the random rest
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        first, second_layer = (model.model.layers[i].self_attn for i in (0, 1))
        copied = basis[3 * MATCHED : 3 * MATCHED + first.head_dim]
        _look_back(first, 0, 1, identity, previous)
        _look_back(first, 1, 2, identity, second)
        _induce(second_layer, 0, identity, previous, copied)


def _clear_head(attention: LlamaAttention, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero one head and return its views: query, key, value (D, H) and output (H, D)."""
    size = attention.head_dim
    rows = slice(head * size, (head + 1) * size)
    q, k, v = (getattr(attention, name).weight[rows] for name in ("q_proj", "k_proj", "v_proj"))
    o = attention.o_proj.weight[:, rows]
    for part in (q, k, v, o):
        part.zero_()
    return q, k, v, o


def _look_back(attention: LlamaAttention, head: int, distance: int, read: Tensor, write: Tensor) -> None:
    """Attend `distance` tokens back: the fast rotary pairs of query and key agree only there. Carry `read` into `write`."""
    q, k, v, o = _clear_head(attention, head)
    half = attention.head_dim // 2
    pairs = torch.arange(12)
    angles = distance * 10_000.0 ** (-pairs / half)
    scale = SHARPNESS / 4.8  # the constant dimension is about 4.8 after the norm
    k[pairs, -1] = scale
    q[pairs, -1] = scale * torch.cos(angles)
    q[pairs + half, -1] = -scale * torch.sin(angles)
    v[:MATCHED] = read
    o[:, :MATCHED] = 0.06 * write.T


def _induce(attention: LlamaAttention, head: int, current: Tensor, previous: Tensor, copied: Tensor) -> None:
    """Attend where the previous token is the current one; copy the token there towards the output."""
    q, k, v, o = _clear_head(attention, head)
    half = attention.head_dim // 2
    slow = torch.cat([torch.arange(half - MATCHED // 2, half), torch.arange(2 * half - MATCHED // 2, 2 * half)])
    q[slow], k[slow] = 2.8 * current, 2.8 * previous
    v[: len(copied)] = copied
    o[:, : len(copied)] = 0.25 * copied.T
