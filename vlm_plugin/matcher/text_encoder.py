"""The text encoder: an embedding and a bidirectional LSTM, of the shape of DAMSM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin.checks import INTEGER_DTYPES, as_integers, check_positive, is_readable
from vlm_plugin.features import Features


class LSTMTextEncoder(nn.Module):
    """Word embedding and a bidirectional LSTM: words are its hidden states, the sentence is both last hidden states.

    Source: arXiv 2208.09596, the text encoder: hidden states and last hidden state (paper); two directions, sizes and
    names are those of DAMSM's published encoder, whose state dict loads with `strict=True` (ours).

    Attributes:
        embed_dim: D.
        vocabulary_size: the number of word ids.
        settings: plain values that rebuild the encoder.
    """

    name = "lstm"

    def __init__(self, vocabulary_size: int, embed_dim: int = 256, word_dim: int = 300, dropout: float = 0.5) -> None:
        """Build the network with random weights.

        Args:
            vocabulary_size: the number of word ids, padding included.
            embed_dim: D, even: half of it per direction.
            word_dim: size of a word's embedding.
            dropout: share of embedding values dropped while training, in [0, 1).

        Raises:
            ValueError: an argument is outside its range.
        """
        super().__init__()
        check_positive(vocabulary_size=vocabulary_size, embed_dim=embed_dim, word_dim=word_dim)
        if embed_dim % 2:
            raise ValueError(f"embed_dim: expected an even number (half per direction), got {embed_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout!r}")
        self.vocabulary_size = vocabulary_size
        self.embed_dim = embed_dim
        self.settings: dict[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "embed_dim": embed_dim,
            "word_dim": word_dim,
            "dropout": dropout,
        }
        self.encoder = nn.Embedding(vocabulary_size, word_dim)
        # Unit-variance embeddings, PyTorch's default, would saturate the LSTM's gates from the start.
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.drop = nn.Dropout(dropout)
        self.rnn = nn.LSTM(word_dim, embed_dim // 2, batch_first=True, bidirectional=True)

    def _check(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Verify the arguments of `forward`; the lengths come back on the CPU, where packing needs them."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens: expected an integer Tensor (B, T), got {type(tokens).__name__}")
        if tokens.dtype not in INTEGER_DTYPES:
            raise TypeError(f"tokens: expected integer word ids, got {tokens.dtype}")
        if tokens.dim() != 2 or 0 in tokens.shape:
            raise ValueError(f"tokens: expected shape (B, T) with B and T at least 1, got {tuple(tokens.shape)}")
        if tokens.device != self.encoder.weight.device:
            raise ValueError(
                f"tokens: expected them on the encoder's device {self.encoder.weight.device}, got {tokens.device}"
            )
        if not (torch.compiler.is_compiling() or is_readable(tokens)):
            raise ValueError("tokens: expected values to read, got none (the meta device, or torch.func.vmap)")
        lengths = as_integers(lengths, "lengths")
        if lengths.shape != tokens.shape[:1]:
            raise ValueError(f"lengths: expected shape ({len(tokens)},) as tokens has, got {tuple(lengths.shape)}")
        lengths = lengths.detach().to("cpu", torch.int64)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1:
            raise ValueError(f"lengths: expected at least one word per caption, got {shortest}")
        if longest > tokens.shape[1]:
            raise ValueError(f"lengths: expected at most {tokens.shape[1]}, the width of tokens, got {longest}")
        # On a GPU an id out of range would not be an error here but kill the process's device context.
        smallest, largest = (int(value) for value in torch.aminmax(tokens))
        if smallest < 0 or largest >= self.vocabulary_size:
            bad = smallest if smallest < 0 else largest
            raise ValueError(
                f"tokens: expected ids from 0 to {self.vocabulary_size - 1}, the encoder's vocabulary has "
                f"{self.vocabulary_size} words, got id {bad}"
            )
        return lengths

    def forward(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Features:
        """Encode captions, in any order of lengths.

        Args:
            tokens: `(B, T)` integer word ids, anything valid past each caption's end.
            lengths: `(B,)` integers in [1, T], on any device.

        Returns:
            `local` (B, T, D), zero past each length; `pooled` (B, D): the forward direction's state after the last word
            and the backward direction's after the first, concatenated; `mask` (B, T), True for words.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape or device, a length or an id outside its range.
        """
        lengths = self._check(tokens, lengths)
        width = tokens.shape[1]
        embedded = self.drop(self.encoder(tokens.long()))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.rnn(packed)
        local, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=width)
        pooled = last.transpose(0, 1).flatten(1)
        mask = torch.arange(width, device=local.device) < lengths.to(local.device)[:, None]
        return Features(local, pooled, mask)
