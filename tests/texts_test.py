"""Texts as tokens, masks and vectors of words, and back."""

import numpy as np
import pytest

from dd_jax.datasets import texts

_TEXTS = ["What is the House?", "the house, the garden", "Where is it ?"]


def test_words_and_signs_in_lower_case():
  assert texts.tokenize("What's U.S.A., twice?") == [
      "what", "'", "s", "u", ".", "s", ".", "a", ".", ",", "twice", "?"]


def test_a_vocabulary_is_sorted_by_frequency():
  words = texts.vocabulary(_TEXTS, min_count=2)
  assert words == ("<padding>", "<unknown>", "the", "?", "house", "is")
  assert len(texts.vocabulary(_TEXTS)) == 2 + 9


def test_sentences_are_cut_and_padded():
  words = texts.vocabulary(_TEXTS, min_count=2)
  tokens, mask = texts.encode(_TEXTS, words, 4)
  np.testing.assert_array_equal(tokens, [[1, 5, 2, 4], [2, 4, 1, 2], [1, 5, 1, 3]])
  np.testing.assert_array_equal(mask, np.ones((3, 4)))
  tokens, mask = texts.encode(["the house"], words, 4)
  np.testing.assert_array_equal(tokens, [[2, 4, 0, 0]])
  np.testing.assert_array_equal(mask, [[1, 1, 0, 0]])
  assert tokens.dtype == np.int32 and mask.dtype == np.float32


@pytest.mark.parametrize("call, message", [
    (lambda: texts.encode(["a", "  "], ("", ""), 4), "texts must hold a token each; got '  ' in"),
    (lambda: texts.encode(["a"], ("", ""), 0), "length must be at least 1; got 0"),
    (lambda: texts.vocabulary(["a"], min_count=0), "min_count must be at least 1; got 0"),
    (lambda: texts.random_vectors(3, 0, 0), "dim must be at least 1; got 0")])
def test_what_does_not_fit_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_vectors_come_from_a_file_of_words(tmp_path):
  path = tmp_path / "vectors.txt"
  path.write_text("3 2\nthe 1 -1\nother 7 7\nhouse 3 1\n")
  words = texts.vocabulary(_TEXTS, min_count=2)
  table = texts.read_vectors(path, words, seed=0)
  scale = np.std([[1, -1], [3, 1]])
  np.testing.assert_allclose(table[words.index("the")], np.array([1, -1]) / scale, rtol=1e-6)
  np.testing.assert_allclose(table[words.index("house")], np.array([3, 1]) / scale, rtol=1e-6)
  np.testing.assert_array_equal(table[texts.PADDING], [0, 0])
  np.testing.assert_array_equal(table[words.index("is")],
                                texts.random_vectors(len(words), 2, 0)[words.index("is")])


def test_a_word_of_a_file_may_have_spaces(tmp_path):
  """As the largest files of GloVe have it."""
  path = tmp_path / "vectors.txt"
  path.write_text("the 1 -1\n. . . 7 7\nat name@domain.com 2 2\nhouse 3 1\n")
  words = texts.vocabulary(_TEXTS, min_count=2)
  table = texts.read_vectors(path, words, seed=0)
  np.testing.assert_allclose(table[words.index("house")],
                             np.array([3, 1]) / np.std([[1, -1], [3, 1]]), rtol=1e-6)


@pytest.mark.parametrize("content, message", [
    ("the 1 2\nhouse 1\n", "expected a word and 2 numbers in line 2; found 'house 1"),
    ("the 1 x\n", "expected finite numbers behind the word in line 1"),
    ("the 1 nan\n", "expected finite numbers behind the word in line 1"),
    ("house 1 2\nthe 1 2 -3.5e-05\n", "expected a word and 2 numbers in line 2"),
    ("none 1 2\n", "expected vectors of words of the texts; found none of 6 words")])
def test_a_file_of_something_else_is_named(tmp_path, content, message):
  path = tmp_path / "vectors.txt"
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    texts.read_vectors(path, texts.vocabulary(_TEXTS, min_count=2), seed=0)


def test_the_nearest_words_of_words_are_these():
  words = texts.vocabulary(_TEXTS, min_count=2)
  table = texts.random_vectors(len(words), 20, 0)
  tokens, mask = texts.encode(["the house ?", "is"], words, 3)
  noise = .1 * np.random.default_rng(1).standard_normal((1, 2, 3, 20))
  assert texts.nearest_words(table[tokens][None] + noise, mask[None], table, words) == [
      ["the house ?", "is"]]
