"""Texts, tables and targets as the data of a run, through its loop, file, report and baselines."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import models
from dd_jax import runs
from dd_jax.datasets import scikit_tables
from dd_jax.files import artifacts
from dd_jax.runs import application
from dd_jax.runs import pools
from dd_jax.runs import report
from dd_jax.runs import run
from dd_jax.runs import table_data
from dd_jax.runs import text_data
from tests.launches import start_anew

pytestmark = pytest.mark.usefixtures("optax_promotion")

_SETTINGS = runs.Settings(log_every=2, validate_every=2, checkpoint_every=4)
_QUESTIONS = [(f"{who} {what} number {i} ?", label) for i in range(12) for who, what, label in (
    ("who", "is", "human"), ("where", "lies", "place"), ("when", "was", "time"))]


def _texts(**options):
  train, test = zip(*_QUESTIONS[:27]), zip(*_QUESTIONS[27:])
  return runs.from_texts(tuple(train), tuple(test), num_validation=6, **{
      "length": 4, "dim": 5, "vectors": "random", **options})


def _text_problem(**options):
  return runs.make_problem(_texts(), models.text_convolution, init="random", num_epochs=2, **options
                           )._replace(num_validation_inits=2, num_test_inits=3, num_inits=2)


def _table(predict="class", number=60, **options):
  rng = np.random.default_rng(0)
  size = rng.normal(size=number)
  colour = rng.integers(0, 3, number)
  target = 3 * size + colour + 10 + .1 * rng.normal(size=number)
  return runs.from_columns(
      {"size": size.tolist(), "colour": [("red", "green", "blue")[i] for i in colour],
       "y": target.tolist() if predict == "number" else
            ["large" if value > 11 else "small" for value in target]},
      label="y", predict=predict, num_validation=12, **options)


def _number_problem(**options):
  return runs.make_problem(_table("number"), models.linear, init="random", images_per_class=5,
                           num_epochs=2)._replace(num_validation_inits=2, num_test_inits=3,
                                                  batch_size=16, **options)


def test_pools_are_of_classes_and_know_the_shapes_of_texts(tmp_path):
  settings = runs.PoolSettings(optax.adam(.01), 3, 2, 2, None, 1, 8)
  texts = _texts()
  model = models.text_convolution(num_classes=3, image_shape=runs.input_shapes(texts))
  init = dd_jax.random_init(model.init)
  runs.pretrain_pools(texts, model, init, tmp_path / "pools", settings=settings)
  inits = runs.pretrained_inits(tmp_path / "pools", model, num_validation=1,
                                expected={"image_shape": pools.listed_shapes(texts)})
  assert [dd_jax.init_distributions.pool_size(each.state) for each in inits] == [2, 1, 2]
  with pytest.raises(ValueError, match=r"data must have classes to pre-train on; got targets"):
    runs.pretrain_pools(_table("number"), model, init, tmp_path / "none", settings=settings)
  assert not (tmp_path / "none").exists()


def test_texts_are_tokens_where_they_lie_and_vectors_where_they_are_taken():
  data = _texts()
  assert data.class_names == ("human", "place", "time") and data.num_classes == 3
  assert data.train[0]["tokens"].shape == (21, 4) and data.train[0]["tokens"].dtype == np.int32
  assert runs.input_shapes(data) == {"embedded": (4, 5), "mask": (4,)}
  inputs, labels = runs.prepared(data, data.train)
  table = data.preparation.state["table"]
  np.testing.assert_array_equal(inputs["embedded"], table[data.train[0]["tokens"]])
  np.testing.assert_array_equal(np.bincount(labels), [7, 7, 7])
  words = {word for batch in data.readable(jax.tree.map(lambda x: x[None], inputs))["rows"]
           for (text,) in batch for word in text.split()}
  assert {"who", "is", "where", "when"} <= words


def test_vectors_are_trained_along_with_a_network():
  trained, random = (_texts(vectors=vectors).preparation.state["table"]
                     for vectors in ("trained", "random"))
  assert trained.shape == random.shape and np.isfinite(trained).all()
  assert np.abs(trained - random).max() > .01 and not trained[0].any()
  np.testing.assert_allclose(trained[1:].std(), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("text")
  with jax.numpy_dtype_promotion("standard"):
    return runs.distill(_text_problem(), workdir, num_steps=6, settings=_SETTINGS)


def test_a_run_of_texts_leaves_words(text_run):
  distilled = text_run.artifact.distilled
  assert {name: leaf.shape for name, leaf in distilled.inputs.items()} == {
      "embedded": (1, 3, 4, 5), "mask": (1, 3, 4)}
  np.testing.assert_array_equal(distilled.inputs["mask"], 1)
  loaded = artifacts.load(text_run.workdir / "distilled.npz")
  readable = loaded.metadata["readable"]
  assert readable["columns"] == ["text"] and len(readable["rows"][0]) == 3
  assert all(len(text.split()) == 4 for (text,) in readable["rows"][0])
  page = (text_run.workdir / "report.html").read_text()
  assert "the nearest words" in page
  assert readable["rows"][0][0][0].replace("?", "").split()[0] in page


def test_a_file_of_texts_trains_networks_as_its_run_did(text_run):
  found = application.apply_distilled(artifacts.load(text_run.workdir / "distilled.npz"), _texts(),
                                      num_networks=3)
  for name in ("accuracy_mean", "accuracy_before_mean"):
    np.testing.assert_allclose(found[name], text_run.figures[name], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "number"])
def test_a_run_that_was_stopped_ends_the_same(tmp_path, kind):
  """Killed after a checkpoint: what the longer run finds there is continued to the same bytes."""
  problem = _text_problem() if kind == "text" else _number_problem()
  whole = runs.distill(problem, tmp_path / "whole", num_steps=12, settings=_SETTINGS,
                       config={"outer": {"num_steps": 12}})

  class Killed(Exception):
    pass

  def stop(*_, **__):
    raise Killed

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "_summarize", stop)
    with pytest.raises(Killed):
      runs.distill(problem, tmp_path / "part", num_steps=12, settings=_SETTINGS,
                   config={"outer": {"num_steps": 12}})
  kept = sorted(int(path.name) for path in (tmp_path / "part/checkpoints").iterdir()
                if path.name.isdecimal())
  for step in kept[1:]:  # It goes on from the oldest.
    shutil.rmtree(tmp_path / "part/checkpoints" / str(step))
  assert kept[0] < 12
  again = runs.distill(problem, tmp_path / "part", num_steps=12, settings=_SETTINGS,
                       config={"outer": {"num_steps": 12}})
  jax.tree.map(np.testing.assert_array_equal, again.artifact.distilled, whole.artifact.distilled)
  name = f"validation_{problem.figures.headline}"
  assert again.figures[name] == whole.figures[name]


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    dict(memory="remat"), dict(memory="nested"), dict(memory=2),
    dict(memory="plain", gradient="forward_over_reverse")], ids=str)
def test_every_memory_mode_gives_the_same_run_of_texts(tmp_path, options):
  problem = _text_problem()
  plain = runs.distill(problem, tmp_path / "plain", num_steps=2, settings=_SETTINGS)
  other = runs.distill(problem._replace(train=dd_jax.unroll(
      dd_jax.losses.classification(problem.apply), **options)), tmp_path / "other", num_steps=2,
                       settings=_SETTINGS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
               plain.artifact.distilled, other.artifact.distilled)


@pytest.mark.slow
def test_every_layout_of_devices_gives_the_same_run_of_texts(tmp_path):
  """In its first steps, before Adam enlarges what sums in another order differ by."""
  folder = tmp_path / "texts"
  folder.mkdir()
  for split, part in (("train", _QUESTIONS[:27]), ("test", _QUESTIONS[27:])):
    (folder / f"{split}.tsv").write_text("\n".join(
        ["coarse\tquestion", *(f"{label}\t{text}" for text, label in part)]) + "\n")
  found = []
  for layout, devices in (("jit", 1), ("jit", 2), ("pmap", 2)):
    workdir = tmp_path / f"{layout}{devices}"
    process = start_anew(
        "experiments.main", "--config=experiments/configs/trec_random_init.py:smoke",
        f"--config.data.name={folder}", "--config.data.num_validation=6", "--config.data.length=4",
        "--config.data.vectors=random", "--config.data.dim=5", "--config.outer.batch_size=16",
        "--config.outer.num_steps=2", f"--config.parallel={layout}", f"--workdir={workdir}",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    assert process.returncode == 0, process.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["device"].startswith(f"{devices} x")
    found.append(artifacts.load(workdir / "distilled.npz").distilled)
  for other in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[0], other)


def test_a_table_is_split_once():
  data = _table()
  sizes = [len(labels) for _, labels in (data.train, data.validation, data.test)]
  assert sizes == [38, 12, 10] and data.class_names == ("large", "small")
  assert data.train[0].shape == (38, 4) and data.targets is None
  rows = np.concatenate([split[0] for split in (data.train, data.validation, data.test)])
  assert len({tuple(row) for row in rows.tolist()}) == 60
  again = _table()
  assert again.digest == data.digest


def test_targets_are_standardised_by_the_training_rows():
  data = _table("number")
  assert data.targets.names == ("y",) and data.num_classes == 1
  np.testing.assert_allclose(data.train[1].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(data.train[1].std(0), 1, rtol=1e-6)
  start = runs.start_labels(data, 2, 3)
  assert start.shape == (2, 3, 1)
  assert np.diff(np.sort(np.asarray(start).ravel())).min() > 0


@pytest.fixture(scope="module")
def number_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("number")
  with jax.numpy_dtype_promotion("standard"):
    return runs.distill(_number_problem(), workdir, num_steps=60,
                        settings=runs.Settings(20, 20, 20))


def test_a_run_of_targets_is_known_by_its_r2(number_run):
  figures = number_run.figures
  assert "accuracy_mean" not in figures
  assert figures["r2_mean"] > figures["r2_before_mean"] and figures["rmse_mean"] > 0
  assert {"validation_r2", "validation_rmse"} <= figures.keys()
  evaluation = np.load(number_run.workdir / "evaluation.npz")
  assert evaluation["after_rmse"].shape == (3, 1)
  targets = number_run.artifact.metadata["targets"]
  error = targets["std"][0] * (evaluation["predictions"] - evaluation["targets"])[:, 0]
  np.testing.assert_allclose(np.sqrt(np.mean(error ** 2)),
                             targets["std"][0] * evaluation["after_rmse"][0, 0], rtol=1e-4)
  page = (number_run.workdir / "report.html").read_text()
  assert "R2 on the test set" in page and "y, test examples" in page and "colour" in page
  assert json.loads((number_run.workdir / "result.json").read_text()) == figures


def test_a_file_of_targets_trains_networks_as_its_run_did(number_run):
  artifact = artifacts.load(number_run.workdir / "distilled.npz")
  found = application.apply_distilled(artifact, _table("number"), num_networks=3)
  np.testing.assert_allclose(found["r2_mean"], number_run.figures["r2_mean"], atol=1e-5)
  assert application.describe(found).startswith("r2: ")


@pytest.mark.slow
def test_baselines_of_a_table_and_of_targets(tmp_path):
  for predict in ("class", "number"):
    data = _table(predict, 200)
    problem = runs.make_problem(data, models.mlp, init="random", images_per_class=4, num_epochs=2
                                )._replace(num_validation_inits=2, num_test_inits=4, batch_size=16)
    found = runs.compare_baselines(problem, tmp_path / predict, real_epochs=(2, 30))["baselines"]
    assert [*found] == ["random_real", "optimized_real", "kmeans", "average_real", "all_real",
                        "boosted_trees_all_real", "boosted_trees_random_real"]
    name = "accuracy" if predict == "class" else "r2"
    assert found["boosted_trees_all_real"][f"{name}_mean"] > .7
    assert found["all_real"][f"{name}_mean"] > .7 and found["all_real"]["num_epochs"] == 30
    assert all(np.isfinite(row[f"{name}_mean"]) for row in found.values())


@pytest.mark.slow
def test_baselines_of_texts(tmp_path):
  problem = _text_problem()
  found = runs.compare_baselines(problem, tmp_path, real_epochs=(300,))["baselines"]
  assert [*found] == ["random_real", "optimized_real", "kmeans", "average_real", "all_real"]
  assert found["all_real"]["accuracy_mean"] > .9


def test_texts_have_a_label_each():
  with pytest.raises(ValueError, match="train must hold a label for each text; got 2 texts and 1"):
    runs.from_texts((["who is", "where is"], ["a"]), (["who is"], ["a"]), num_validation=1)


def test_trained_vectors_are_no_part_of_what_data_are_known_by():
  """Their last bits are of a machine; the texts, and vectors that are read, are not."""
  assert "vectors" not in _texts(vectors="trained").digest
  assert "vectors" in _texts(vectors="random").digest


def test_files_of_texts_need_both_splits(tmp_path):
  (tmp_path / "train.tsv").write_text("text\tlabel\nwho is it\ta\n")
  with pytest.raises(ValueError, match="found no test file"):
    text_data.from_files(str(tmp_path), text="text", label="label", num_validation=1)


def test_two_reports_of_different_figures_stand_side_by_side(text_run, number_run, tmp_path):
  found = report.report([str(text_run.workdir), str(number_run.workdir)],
                        str(tmp_path / "both.html"), {})
  page = (tmp_path / "both.html").read_text()
  assert found["report"] == str(tmp_path / "both.html")
  for title, of in (("Accuracy", "% of"), ("R2", "on")):
    assert f"{title} while distilling</strong> {of} validation examples" in page


@pytest.mark.slow
def test_as_many_rows_as_columns_reach_the_least_squares_solution(x64):
  """Section 3.3 on real data: rows and targets learned by the hypergradient, from any weights."""
  data = table_data.from_columns(scikit_tables.read("diabetes"), label=scikit_tables.LABEL,
                                 predict="number", num_validation=60)
  inputs, targets = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), data.train)
  size = inputs.shape[1]
  model = models.linear(num_classes=1, image_shape=(size,))
  loss = dd_jax.losses.regression(model.apply)
  init = dd_jax.random_init(
      lambda key: {"Dense_0": {"kernel": jax.random.normal(key, (size, 1), jnp.float64)}})
  train = dd_jax.unroll(loss)
  learned = dd_jax.parametrization.join(
      dd_jax.parametrization.inputs((size,), 1, size),
      dd_jax.parametrization.soft_labels(
          runs.start_labels(data, 1, size).astype(jnp.float64)),
      dd_jax.step_sizes.fixed(1, 1, 1.), dtype=jnp.float64)
  outer_loss = dd_jax.make_outer_loss(learned.decode, init, train, loss, num_inits=2 * size)
  key = jax.random.key(1)

  def value(trainable):
    return outer_loss(trainable, init.state, key, inputs, targets)

  optimizer = optax.lbfgs(memory_size=30)
  value_and_grad = optax.value_and_grad_from_state(value)

  def step(carry, _):
    trainable, state = carry
    found, gradient = value_and_grad(trainable, state=state)
    updates, state = optimizer.update(gradient, state, trainable, value=found, grad=gradient,
                                      value_fn=value)
    return (optax.apply_updates(trainable, updates), state), found

  start = learned.init(jax.random.key(0))
  (trainable, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))(
      (start, optimizer.init(start)))
  solution = np.linalg.lstsq(inputs, targets)[0]
  for network in jax.random.split(jax.random.key(7), 3):  # Weights that training never saw.
    trained, _ = train(None, init.make(init.state, network), learned.decode(trainable))
    np.testing.assert_allclose(trained["Dense_0"]["kernel"], solution, atol=1e-10)
  exact = dd_jax.linear.exact_data(jnp.asarray(solution[:, 0]), 1.)  # The closed form, as it is.
  trained, _ = train(None, init.make(init.state, network), dd_jax.DistilledData(
      exact.inputs, exact.labels[..., None], exact.step_sizes))
  np.testing.assert_allclose(trained["Dense_0"]["kernel"], solution, atol=1e-10)
