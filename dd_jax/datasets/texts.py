"""Texts as tokens: words, a vocabulary, sentences of one length, and vectors of words.

Letters: n sentences, L tokens of each, V words of the vocabulary, D numbers of a word.
"""

import collections
from collections.abc import Sequence
import pathlib
import re
from typing import NamedTuple

import numpy as np

PADDING, UNKNOWN = 0, 1  # Places in every vocabulary.
_SPECIAL = ("<padding>", "<unknown>")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_NUMBER_BEHIND = re.compile(r" -?\d+\.?\d*(e-?\d+)?$")  # A number more than there should be.


class Sentences(NamedTuple):
  """Sentences of one length."""
  tokens: np.ndarray  # [n, L] int32, places in the vocabulary.
  mask: np.ndarray  # [n, L] float32, 1 where there is a token, 0 behind the last.


def tokenize(text: str) -> list[str]:
  """Words in lower case, and signs; what a reader would point at."""
  return _TOKEN.findall(text.lower())


def vocabulary(texts: Sequence[str], *, min_count: int = 1) -> tuple[str, ...]:
  """The words of some texts, the most frequent first, behind those for padding and the unknown.

  Args:
    texts: of the training split alone.
    min_count: times that a word must be there.
  """
  if min_count < 1:
    raise ValueError(f"min_count must be at least 1; got {min_count}")
  counts = collections.Counter(token for text in texts for token in tokenize(text))
  known = sorted((word for word, count in counts.items() if count >= min_count),
                 key=lambda word: (-counts[word], word))
  return (*_SPECIAL, *known)


def encode(texts: Sequence[str], words: tuple[str, ...], length: int) -> Sentences:
  """The first `length` tokens of each text.

  Raises:
    ValueError: a length below 1, or a text without a token.
  """
  if length < 1:
    raise ValueError(f"length must be at least 1; got {length}")
  places = {word: place for place, word in enumerate(words)}
  tokens = np.full((len(texts), length), PADDING, np.int32)
  for row, text in enumerate(texts):
    found = [places.get(token, UNKNOWN) for token in tokenize(text)[:length]]
    if not found:
      raise ValueError(f"texts must hold a token each; got {text!r} in row {row + 1}")
    tokens[row, :len(found)] = found
  return Sentences(tokens, (tokens != PADDING).astype(np.float32))


def random_vectors(num_words: int, dim: int, seed: int) -> np.ndarray:
  """`[V, D]` from N(0, 1), zeros for the padding."""
  if dim < 1:
    raise ValueError(f"dim must be at least 1; got {dim}")
  table = np.random.default_rng(seed).standard_normal((num_words, dim)).astype(np.float32)
  table[PADDING] = 0
  return table


def read_vectors(path: str | pathlib.Path, words: tuple[str, ...], seed: int) -> np.ndarray:
  """`[V, D]` from a text file of word vectors: a word and D numbers a line (GloVe, fastText).

  They are scaled to unit variance; a word that the file lacks gets random numbers of that variance.
  A first line of two numbers, as fastText has it, is passed over.

  Raises:
    FileNotFoundError: there is no file.
    ValueError: a line of another length or with something else than finite numbers, or no known
      word.
  """
  path, wanted, dim = pathlib.Path(path).expanduser(), {*words}, 0
  found: dict[str, np.ndarray] = {}
  with path.open(encoding="utf-8", errors="replace") as file:
    for number, line in enumerate(file, start=1):
      # A word may have spaces of its own, but for that of the first line, which tells D.
      word, *fields = line.rstrip().rsplit(" ", dim or -1)
      if number == 1 and len(fields) == 1 and word.isdecimal():
        continue
      dim = dim or len(fields)
      if len(fields) != dim or not dim or _NUMBER_BEHIND.search(word):
        raise ValueError(f"{path}: expected a word and {dim or 'some'} numbers in line {number}; "
                         f"found {line[:40]!r}")
      if word in wanted and word not in found:
        try:
          vector = np.array(fields, np.float32)
          if not np.isfinite(vector).all():
            raise ValueError("a number that is not finite")
          found[word] = vector
        except ValueError as error:
          raise ValueError(f"{path}: expected finite numbers behind the word in line {number}; "
                           f"found {line[:40]!r}") from error
  if not found:
    raise ValueError(f"{path}: expected vectors of words of the texts; found none of "
                     f"{len(words)} words")
  scale = np.std(np.stack([*found.values()])) or 1.
  table = random_vectors(len(words), dim, seed)
  for place, word in enumerate(words):
    if word in found:
      table[place] = found[word] / scale
  return table


def nearest_words(embedded: np.ndarray, mask: np.ndarray, table: np.ndarray,
                  words: tuple[str, ...]) -> list:
  """The word of the nearest vector at every place: texts in lists as `embedded` is nested.

  Args:
    embedded: `[..., L, D]`.
    mask: `[..., L]`; a place of less than a half is left out.
    table: `[V, D]`.
    words: V.
  """
  flat = embedded.reshape(-1, embedded.shape[-1])
  # The padding is no word.
  distances = (table[1:] ** 2).sum(1) - 2 * flat @ table[1:].T
  places = 1 + distances.argmin(1).reshape(embedded.shape[:-1])

  def read(places, mask):
    if places.ndim > 1:
      return [read(*pair) for pair in zip(places, mask)]
    return " ".join(words[place] for place, there in zip(places, mask) if there >= .5)

  return read(places, mask)
