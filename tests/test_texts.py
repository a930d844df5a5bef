import pytest
import torch
from tiny import N_CTX, save_tiny_model, sentence, tokens

import sea_lens as sl
from sea_lens.models.lens import Lens
from sea_lens.models.tokens import batches, encode, encode_completion, pad

pytestmark = pytest.mark.model
BOS = 1


def test_one_bos_stands_in_front_and_never_two(any_model):
    lens = Lens.of(any_model)
    assert encode(lens, "w1 w2") == [BOS, 5, 6]
    assert encode(lens, "<s> w1 w2") == [BOS, 5, 6]
    assert encode(lens, "w1 w2", prepend_bos=False) == [5, 6]


def test_a_tokenizer_without_bos_gets_none_on_any_backend(tmp_path, backend):
    lens = Lens.of(sl.load_model(str(save_tiny_model("qwen2", tmp_path / "m", bos=False)), backend))
    assert encode(lens, "w1 w2") == [5, 6]


def test_padding_changes_nothing(any_model):
    lens = Lens.of(any_model)
    sequences = [tokens(1, length, seed=length)[0].tolist() for length in (3, 11, 7)]
    together = lens.forward(*pad(sequences))
    for row, sequence in enumerate(sequences):
        alone = lens.forward(*pad([sequence]))[0]
        torch.testing.assert_close(together[row, : len(sequence)], alone, rtol=1e-5, atol=1e-5)


def test_a_completion_starts_after_the_longest_shared_prefix(model):
    lens = Lens.of(model)
    assert encode_completion(lens, "w1 w2", " w3 w4") == ([BOS, 5, 6, 7, 8], 3)
    # "w2" and "3" melt into one word: the prompt's last token is then part of what is scored.
    assert encode_completion(lens, "w1 w2", "3 w4") == ([BOS, 5, 27, 8], 2)


def test_texts_that_cannot_be_read_are_refused(model):
    lens = Lens.of(model)
    with pytest.raises(
        sl.DemonstrationError, match=f"demo 3 has {N_CTX + 2} tokens, the model's context holds {N_CTX}"
    ):
        encode(lens, sentence(0, N_CTX + 1), what="demo 3")
    with pytest.raises(sl.DemonstrationError, match="has no tokens"):
        encode(lens, "  ", prepend_bos=False)
    with pytest.raises(sl.DemonstrationError, match="adds no token to its prompt"):
        encode_completion(lens, "w1", "  ")
    with pytest.raises(sl.DemonstrationError, match="no token before its completion"):
        encode_completion(lens, "w1", "2", prepend_bos=False)


def test_batches_hold_every_row_once_longest_first():
    sequences = [[1] * length for length in (2, 9, 4, 7, 1)]
    made = list(batches(sequences, 2))
    assert [batch.rows for batch in made] == [[1, 3], [2, 0], [4]]
    assert [batch.mask.sum(1).tolist() for batch in made] == [[9, 7], [4, 2], [1]]
