"""The text tower: a static sentence-transformers model, small and fast enough to encode thousands of reports a second.

Report language is narrow (PTB-XL has some 2,000 words in German, English and Swedish), and the order of words carries
little of the finding. So the tower is the mean of token embeddings followed by a two-layer perceptron, in the format
of the sentence-transformers library: ``SentenceTransformer(path)`` loads it.

The vocabulary is the words of the training reports and of the prompt bank, and beneath them the English word pieces of
all-MiniLM-L6-v2 (Apache-2.0), whose own sentence embeddings of each token initialise the table (the distillation of
Model2Vec). A word that training never saw is thus near the words that MiniLM finds similar.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmecg.embedding import EMBEDDING_DIM
from mmecg.errors import ReportError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

CHUNK_TOKENS = 128
"""Texts longer than this many tokens are embedded in chunks, whose embeddings are averaged and normalised again."""

_PIECE = re.compile(r"(##)?[a-z0-9<>=/.,%+-]+")
_WORD = re.compile(r"[^\W_]+")


def build_vocabulary(texts: Iterable[str], base: Sequence[str], *, min_count: int = 3) -> list[str]:
    """Return the token list: special tokens, base word pieces in Latin script, and the corpus's own words.

    Parameters
    ----------
    texts : iterable of str
        Training texts.
    base : sequence of str
        Vocabulary of the base model.
    min_count : int
        Words seen less often are left to their pieces.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    tokens = dict.fromkeys(["[PAD]", "[UNK]"])
    tokens.update(dict.fromkeys(piece for piece in base if _PIECE.fullmatch(piece) and not piece.isdigit()))
    tokens.update(dict.fromkeys(str(number) for number in range(100)))
    tokens.update(dict.fromkeys(sorted({char for word in counts for char in word})))
    tokens.update(dict.fromkeys("##" + char for char in sorted({char for word in counts for char in word})))
    tokens.update(dict.fromkeys(word for word, count in sorted(counts.items()) if count >= min_count))
    return list(tokens)


def build_text_encoder(
    vocabulary: Sequence[str], *, width: int = 256, hidden: int = 512, init: NDArray[np.float32] | None = None
) -> SentenceTransformer:
    """Return a new static text tower.

    Parameters
    ----------
    vocabulary : sequence of str
        From :func:`build_vocabulary`.
    width, hidden : int
        Length of a token embedding; width of the hidden layer.
    init : float32, shape (tokens, width), optional
        Initial token embeddings, default normal with standard deviation 0.1.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    tokenizer = Tokenizer(
        WordPiece(
            {token: row for row, token in enumerate(vocabulary)},
            unk_token="[UNK]",  # noqa: S106 (not a password)
            max_input_chars_per_word=60,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if init is None:
        init = np.random.default_rng(0).normal(0, 0.1, (len(vocabulary), width)).astype(np.float32)
    return SentenceTransformer(
        modules=[
            StaticEmbedding(tokenizer, embedding_weights=init),
            Dense(width, hidden, activation_function=nn.GELU()),
            Dense(hidden, EMBEDDING_DIM, activation_function=nn.Identity()),
            Normalize(),
        ],
        device="cpu",
        similarity_fn_name="cosine",
    )


def distil_embeddings(
    vocabulary: Sequence[str], base_model: Path, *, width: int = 256, quiet: bool = True
) -> NDArray[np.float32]:
    """Return initial token embeddings: a base model's sentence embedding of each token, reduced by PCA.

    Parameters
    ----------
    vocabulary : sequence of str
    base_model : Path
        A sentence-transformers directory (all-MiniLM-L6-v2).
    width : int
        Components kept. They are scaled to a standard deviation of 0.1.
    quiet : bool
        No progress bar.

    Returns
    -------
    float32, shape (tokens, width)
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(base_model), device="cpu", local_files_only=True)
    words = [token.removeprefix("##") for token in vocabulary]
    vectors = model.encode(words, batch_size=256, show_progress_bar=not quiet)
    centred = vectors - vectors.mean(0)
    _, basis = np.linalg.eigh(centred.T @ centred)
    reduced = centred @ basis[:, ::-1][:, :width]
    return np.ascontiguousarray(reduced * (0.1 / reduced.std()), np.float32)


class TextEncoder(nn.Module):
    """Wrap a sentence-transformers model so that it trains with the other towers and embeds texts of any length.

    Parameters
    ----------
    model : SentenceTransformer
        Ends in unit-norm embeddings.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    @property
    def _static(self) -> StaticEmbedding:
        return cast("StaticEmbedding", self.model[0])

    @classmethod
    def load(cls, path: Path) -> TextEncoder:
        """Load a directory that :meth:`save` wrote."""
        from sentence_transformers import SentenceTransformer

        return cls(SentenceTransformer(str(path), device="cpu", local_files_only=True))

    def save(self, path: Path) -> None:
        """Write the directory in the sentence-transformers format (safetensors)."""
        self.model.save(str(path), create_model_card=False, safe_serialization=True)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids of each text; never truncated."""
        tokenizer: Tokenizer = self._static.tokenizer
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def embed_tokens(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return float, shape (batch, dim), unit norm; differentiable.

        Parameters
        ----------
        tokens : sequence of sequences of int
            From :meth:`tokenize`, each with at least one token.
        """
        device = self._static.embedding.weight.device
        if not tokens:
            return torch.empty(0, EMBEDDING_DIM, device=device)
        lengths = np.array([0, *map(len, tokens[:-1])])
        features = {
            "input_ids": torch.tensor(np.concatenate([np.asarray(ids) for ids in tokens]), device=device),
            "offsets": torch.from_numpy(np.cumsum(lengths)).to(device),
        }
        out: Tensor = self.model(features)["sentence_embedding"]  # (batch, dim)
        return out

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return float, shape (batch, dim), unit norm, of texts of any length.

        Raises
        ------
        ReportError
            A text without any letter or digit: it has no direction.
        """
        chunks: list[list[int]] = []
        owner: list[int] = []
        for row, ids in enumerate(self.tokenize(texts)):
            if not any(char.isalnum() for char in texts[row]):
                raise ReportError("text is empty, expected words; leave the text out", field="text")
            for start in range(0, len(ids), CHUNK_TOKENS):
                chunks.append(ids[start : start + CHUNK_TOKENS])
                owner.append(row)
        embedded = self.embed_tokens(chunks)  # (chunks, dim)
        rows = torch.tensor(owner, device=embedded.device)
        summed = embedded.new_zeros(len(texts), embedded.shape[1]).index_add_(0, rows, embedded)
        return nn.functional.normalize(summed, dim=-1)
