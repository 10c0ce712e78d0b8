"""The page about a run: what it says, in a real browser, and what it does not take."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jinja2
from matplotlib import image as mpl_image
import numpy as np
import pytest

import dd_jax
from dd_jax import runs
from dd_jax.runs import charts
from dd_jax.runs import plots
from dd_jax.runs import report
from dd_jax.runs import snapshots
from dd_jax.runs import tensorboard
from experiments import problem
from experiments.configs import default
from experiments.configs import digits_fixed_init
from tests import small_runs

_USUAL = default.get_config().to_dict()
_ROOT = pathlib.Path(__file__).parent.parent
_CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of a few steps, with three networks and soft labels."""
  workdir = tmp_path_factory.mktemp("runs") / "soft"
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({
      "init.name": "random", "eval.num_inits": 3, "distill.labels": "soft",
      "distill.num_steps": 2, "model.name": "mlp", "tensorboard": True})
  with jax.numpy_dtype_promotion("standard"):
    problem.distill(config, workdir)
  return workdir


@pytest.mark.slow
def test_a_run_keeps_its_images_on_their_way_and_every_network_it_was_tested_on(workdir):
  found = snapshots.load_images(workdir)
  assert list(found) == [0, 2, 4, 6]
  run = report.read_run(workdir)
  pixels = np.round(255 * run.artifact.pixels()).astype(np.uint8)
  np.testing.assert_array_equal(found[6]["pixels"], pixels)
  assert (found[0]["pixels"] != pixels).any()
  np.testing.assert_allclose(found[6]["step_sizes"], run.artifact.distilled.step_sizes)
  evaluation = snapshots.load_evaluation(workdir)
  for when, suffix in (("after", ""), ("before", "_before")):
    assert evaluation[f"{when}_accuracy"].shape == (3,)
    np.testing.assert_allclose(evaluation[f"{when}_accuracy"].mean(),
                               run.result[f"accuracy{suffix}_mean"], rtol=1e-6)
    confusion = evaluation[f"{when}_confusion"]
    np.testing.assert_allclose(np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2)),
                               evaluation[f"{when}_accuracy"], rtol=1e-6)


@pytest.mark.slow
def test_float_images_of_any_range_look_as_those_of_uint8(tmp_path):
  """Pixels as 0..255 and as -1..1: equal snapshots, and the range is in file and report."""
  shown = {}
  for name, scale in (("bytes", lambda pixels: pixels), ("wide", np.float32),
                      ("signed", lambda pixels: pixels / 127.5 - 1)):
    data = small_runs.data(scale)
    images, labels = runs.prepared(data, data.train)
    (tmp_path / name).mkdir()
    shown[name] = snapshots.save_images(
        tmp_path / name, 0, data.pixels, dd_jax.DistilledData(
            images[None], labels[None], np.ones((1, 1)))).astype(int)
  assert shown["bytes"].min() == 0 and shown["bytes"].max() == 255
  for name in ("wide", "signed"):
    assert np.abs(shown[name] - shown["bytes"]).max() <= 1

  result = runs.distill(small_runs.problem(data), tmp_path / "run", num_steps=6,
                        settings=small_runs.SETTINGS)
  assert result.artifact.pixel_range == (-1, 1)
  found = report.read_run(tmp_path / "run")
  assert np.abs(255 * found.artifact.pictures() - found.snapshots[6]["pixels"]).max() <= .51
  page = (tmp_path / "run/report.html").read_text()
  assert re.search(r"pixels, black to white</th>\s*<td>-1 to 1</td>", page)
  # Of a problem without a config the page says what its file does.
  assert '<p class="soft">small, mlp, fixed init</p>' in page


@pytest.mark.parametrize("num_steps, every, expected", [
    (8000, 100, list(range(1000, 8001, 1000))), (6, 2, [2, 4, 6]), (100, 30, [30, 60, 90, 100])])
def test_snapshots_are_evenly_spaced_and_include_the_last_step(num_steps, every, expected):
  ends = [*range(0, num_steps, every), num_steps]
  due = [end for begin, end in zip(ends, ends[1:]) if snapshots.is_shown(begin, end, num_steps)]
  assert due == expected and len(due) <= 8


def test_a_picture_of_many_steps_and_epochs_stays_one_that_can_be_looked_at(tmp_path):
  sizes = np.full((1000, 300), .02)
  plots.distilled_images(tmp_path / "many.png", np.zeros((300, 2, 4, 4, 1)),
                         np.tile([0, 1], (300, 1)), sizes, "many")
  height, width, _ = mpl_image.imread(tmp_path / "many.png").shape
  assert 5000 < height < 12_000 and 500 < width < 2000


def test_figures_that_are_not_finite_leave_the_others_and_their_colours():
  of_networks = np.array([.2, np.nan, .4], np.float32)
  chart = charts.histogram({"before_r2": of_networks, "after_r2": of_networks + .5}, "r2", "R2", 1)
  assert len(chart["bars"]) == 4 and "without 2 figures" in chart["unit"]
  assert np.isfinite([bar for bar in chart["bars"]]).all()
  macro, end, _ = pathlib.Path(report.__file__).with_name("report.html.jinja").read_text(
      ).partition("{% endmacro %}")
  page = jinja2.Template(f"{macro}{end}{{{{ chart(c) }}}}").render(c=charts.line_chart(
      "R2", "", {"validation": [(1, np.nan), (2, np.nan)], "test": [(1, .5), (2, .5)]}))
  assert '<i class="s1"></i>test' in page and '<polyline class="s1"' in page


def test_the_page_of_a_run_says_what_its_files_say(workdir):
  text = (workdir / "report.html").read_text()
  result = json.loads((workdir / "result.json").read_text())
  assert f"{100 * result['accuracy_mean']:.1f} ± {100 * result['accuracy_std']:.1f} %" in text
  assert text.count('alt="distilled image of soft label') == 20
  assert text.count('alt="the first images after outer step') == 4
  assert result["selection"] in text and "&#34;num_inits&#34;" in text
  assert "Networks never seen in training" in text and "What is taken for what" in text
  changed = re.findall(r'<th scope="row">([\w.]+)</th><td>(.*?)</td><td class="soft">', text)
  assert ("model.name", "mlp") in changed and "outer.beta2" not in dict(changed)
  # Nothing is fetched: no address but those of data within the file.
  assert not re.findall(r'(?:src|href)="(?!data:)', text) and "url(" not in text


def test_poisoning_and_adaptation_have_their_rows(workdir, tmp_path):
  run, result = report.read_run(workdir), {}
  metadata = run.artifact.metadata
  for name, value in (("attack_success", .75), ("others_accuracy", .9)):
    result |= {f"{name}_mean": value, f"{name}_std": .05, f"{name}_before_mean": .01,
               f"{name}_before_std": .001}
  report.write(tmp_path / "page.html", [run._replace(
      result={**run.result, **result}, artifact=run.artifact._replace(
          metadata={**metadata, "init": {**metadata["init"], "source": "usps"}}))], _USUAL)
  text = (tmp_path / "page.html").read_text()
  assert ('<th scope="row">test attack class read as target</th><td>1.0 ± 0.1 %</td>'
          '<td>75.0 ± 5.0 %</td>'
          in text)
  assert "networks trained on usps alone" in text


def test_names_and_values_are_escaped(workdir, tmp_path):
  run = report.read_run(workdir)
  report.write(tmp_path / "page.html", [run._replace(name="<script>alert(1)</script>")], _USUAL)
  assert "<script" not in (tmp_path / "page.html").read_text()


def test_several_runs_are_compared(workdir, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(workdir, other)
  result = json.loads((other / "result.json").read_text())
  result["config"]["seed"], result["accuracy_mean"] = 7, .5
  (other / "result.json").write_text(json.dumps(result))
  out = tmp_path / "two.html"
  assert report.report([str(workdir), str(other)], str(out), _USUAL) == {"report": str(out)}
  text = out.read_text()
  assert re.search(r'<th scope="row">seed</th><td>0</td><td>7</td></tr>', text)
  assert re.search(r'<th scope="row">test accuracy</th><td>[^<]*</td><td>50.0 ±', text)


def test_the_command_makes_the_page_of_a_run_anew(workdir, tmp_path):
  out = tmp_path / "page.html"
  process = subprocess.run(
      [sys.executable, "-m", "experiments.report", str(workdir), f"--out={out}"],
      cwd=_ROOT, capture_output=True, text=True, timeout=200)
  assert process.returncode == 0, process.stderr
  assert json.loads(process.stdout.splitlines()[-1]) == {"report": str(out)}
  assert out.read_bytes() == (workdir / "report.html").read_bytes()


def _without(path, name):
  result = json.loads(path.read_text())
  del result[name]
  path.write_text(json.dumps(result))


def _cut(path):
  path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage, message", [
    (lambda d: (d / "result.json").unlink(), "must hold a finished run; it has no result.json"),
    (lambda d: (d / "result.json").write_text("{"), "result.json must be JSON; it is damaged"),
    (lambda d: (d / "result.json").write_text("[]"), "result.json must be that of a run; got list"),
    (lambda d: (d / "result.json").write_text("{}"), r"or of another type: \['config', 'acc"),
    (lambda d: _without(d / "result.json", "accuracy_mean"), r"another type: \['accuracy_mean'\]"),
    (lambda d: (d / "metrics.jsonl").unlink(), "must end at outer step 6; it ends at nothing"),
    (lambda d: _cut(d / "metrics.jsonl"), "must end at outer step 6; it ends at 4"),
    (lambda d: (d / "metrics.jsonl").write_text('{"step": 6}'), "a loss in every line"),
    (lambda d: (d / "snapshots/x.npz").write_bytes(b""), "snapshots/x.npz must be named by its"),
    (lambda d: (d / "evaluation.npz").write_bytes(b"x"), "evaluation.npz cannot be read"),
    (lambda d: (d / "snapshots/2.npz").write_bytes(b""), "snapshots/2.npz cannot be read"),
    (lambda d: (d / "distilled.npz").write_bytes(b"x"), "distilled.npz must be"),
])
def test_a_damaged_run_is_named(workdir, tmp_path, damage, message):
  other = tmp_path / "other"
  shutil.copytree(workdir, other)
  (other / "report.html").unlink()
  damage(other)
  with pytest.raises(ValueError, match=message) as error:
    report.report([str(other)], None, _USUAL)
  assert "\n" not in str(error.value) and not (other / "report.html").exists()


def test_what_to_report_on_must_be_said(workdir):
  with pytest.raises(ValueError, match="at least one directory"):
    report.report([], None, _USUAL)
  with pytest.raises(ValueError, match="--out must be given for several runs"):
    report.report([str(workdir), str(workdir)], None, _USUAL)


@pytest.mark.skipif(_CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_and_the_console_is_silent(workdir, tmp_path, width):
  """In a frame of that width, whose page says how wide it became."""
  frame = tmp_path / "frame.html"
  frame.write_text(f"""<!doctype html><iframe width={width} height=800 style="border:0"
      src="file://{workdir}/report.html" onload="const d = this.contentDocument.documentElement;
      document.title = d.scrollWidth + ' ' + d.clientWidth + ' '
          + [...this.contentDocument.images].filter(i => i.naturalWidth > 0).length"></iframe>""")
  process = subprocess.run(
      [_CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
       "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", "--window-size=1400,900",
       "--virtual-time-budget=5000", "--dump-dom", f"file://{frame}"],
      capture_output=True, text=True, timeout=120)
  scroll, client, images = map(int, re.search(r"<title>(.*?)</title>", process.stdout)[1].split())
  assert width - 20 < client <= width and scroll <= client  # Less its scroll bar.
  assert images == 20 + 4
  assert "CONSOLE" not in process.stderr


def _events(directory):
  """The events of the files in their order; each record is length, its check, data, its check."""
  from tensorboardX.proto import event_pb2
  events = []
  for path in sorted(directory.glob("events.*")):
    content = path.read_bytes()
    while content:
      length = int.from_bytes(content[:8], "little")
      events.append(event_pb2.Event.FromString(content[12:12 + length]))
      content = content[16 + length:]
  return events


def test_tensorboard_forgets_what_is_done_again(tmp_path):
  board = tensorboard.Board(tmp_path, enabled=True)
  for begin, loss in ((0, 1.), (0, 2.), (5, 3.)):  # All of them within one second.
    board.begin(begin)
    if begin == 0:
      board.add_images(0, np.zeros((1, 2, 4, 4, 1), np.uint8))
    board.add_line({"step": 5 if begin == 0 else 10, "loss": loss})
  board.close()
  shown = {}
  for event in _events(tmp_path / "tensorboard"):
    if event.session_log.status == event.session_log.START:  # TensorBoard's rule for a restart.
      shown = {key: seen for key, seen in shown.items() if key[0] < event.step}
    for value in event.summary.value:
      shown.setdefault((event.step, value.tag), []).append(value.simple_value)
  assert shown == {(0, "distilled_images"): [0.], (5, "loss"): [2.], (10, "loss"): [3.]}


def test_tensorboard_shows_the_same_curves_and_the_images(workdir):
  values = [(event.step, value) for event in _events(workdir / "tensorboard")
            for value in event.summary.value]
  losses = {step: value.simple_value for step, value in values if value.tag == "loss"}
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert losses == pytest.approx({line["step"]: line["loss"] for line in lines})
  assert [step for step, value in values if value.tag == "distilled_images"] == [0, 2, 4, 6]


def test_tensorboard_that_is_not_installed_is_said_before_the_run(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ImportError, match=r'pip install "dd_jax\[tensorboard\]"'):
    runs.distill(small_runs.problem(), tmp_path / "run", num_steps=6,
                 settings=small_runs.SETTINGS._replace(tensorboard=True))
  assert not (tmp_path / "run").exists()
