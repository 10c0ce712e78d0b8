"""The metrics of a run that was interrupted; the rules are in `damage`."""

import hypothesis
from hypothesis import strategies as st

from dd_jax.runs import workdirs
from tests import damage


@damage.examples(200)
@hypothesis.given(st.data())
def test_metrics(tmp_path_factory, data):
  """The lines before the damage come back; what a power failure leaves is no error."""
  lines = [{"step": step, "loss": data.draw(st.floats(0, 10)), "seconds": 0.5}
           for step in range(1, data.draw(st.integers(1, 5)) + 1)]
  path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
  workdirs.write_lines(path, lines)
  whole = path.read_bytes()
  cut = data.draw(st.integers(0, len(whole)))
  tail = data.draw(st.sampled_from([b"", bytes(50), b"\xff\xfe\n", b"[1]\n", b"7\n"]))
  path.write_bytes(whole[:cut] + tail)
  found = workdirs.read_lines(path, "step")
  assert found == lines[:len(found)]
  assert len(found) >= whole[:cut].count(b"\n")
