"""A user's own data, network, losses, images, inits and augmentations, named in a config."""

import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from experiments import problem
from experiments.configs import default
from experiments.configs import transfer
from experiments.names import applied
from experiments.names import parts

_FILES = {
    "my_nets.py": """
        import math
        import jax
        import jax.numpy as jnp
        import dd_jax
        from dd_jax import parametrization

        scale = 3.0

        def tiny(num_classes, image_shape):
          size = math.prod(image_shape)

          def init(key):
            return {"w": jax.random.normal(key, (size, num_classes)), "b": jnp.zeros(num_classes)}

          def apply(params, inputs):
            return inputs.reshape(-1, size) @ params["w"] + params["b"]

          return dd_jax.Model(init, apply)

        def noisy(num_classes, image_shape):
          init, apply = tiny(num_classes, image_shape)

          def noisy_apply(params, inputs, key=None):
            outputs = apply(params, inputs)
            return outputs if key is None else outputs + jax.random.normal(key, outputs.shape)

          return dd_jax.Model(init, noisy_apply)

        def one_argument(num_classes):
          return tiny(num_classes, (6, 6, 1))

        def number(*arguments, **named):
          return 3

        def halves(model):
          return dd_jax.random_init(lambda key: jax.tree.map(
              lambda leaf: jnp.full_like(leaf, .5), model.init(key)))

        def ones(shape):
          return parametrization.pixels(shape, jnp.ones(shape))

        def negative(key, images):
          return -images
        """,
    "my_data.py": """
        import numpy as np
        from dd_jax import datasets
        from dd_jax import runs

        def load():
          random = np.random.default_rng(0)
          arrays = []
          for size in (90, 30):
            labels = np.arange(size) % 3
            images = random.integers(0, 100, (size, 6, 6, 1))
            images[np.arange(size), labels] += 150  # A bright row.
            arrays += [images.astype(np.uint8), labels]
          return arrays

        def whole():
          return datasets.from_arrays(*load(), mean=[.5], std=[.25])

        def prepared():
          return runs.from_dataset(datasets.from_arrays(*load()), num_validation=30)
        """,
    "my_losses.py": """
        import jax.numpy as jnp

        def outer(apply):
          return lambda params, inputs, labels: 7 + jnp.mean(apply(params, inputs) ** 2)

        def direct(params, inputs, labels):
          return 2 * jnp.mean(inputs) + jnp.sum(params["b"] * jnp.arange(3.))

        def keyed(params, inputs, labels, *, key):
          return direct(params, inputs, labels)

        def two(params, labels):
          return 0.
        """,
}
_MODULES = [name.removesuffix(".py") for name in _FILES]

pytestmark = pytest.mark.usefixtures("quick_runs", "own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp("own")
  for name, text in _FILES.items():
    (directory / name).write_text(textwrap.dedent(text))
  return directory


@pytest.fixture
def own(folder, monkeypatch):
  """The modules can be imported, broadcast as users do, and nothing of them stays."""
  monkeypatch.syspath_prepend(str(folder))
  with jax.numpy_rank_promotion("allow"):
    yield
  _forget()


def _forget():
  for name in _MODULES:
    sys.modules.pop(name, None)


def _config(**updates):
  config = default.get_config()
  default.apply_variant(config, "smoke")
  config.update_from_flattened_dict({
      "data.name": "my_data:load", "data.num_validation": 30, "model.name": "my_nets:tiny",
      "distill.num_steps": 1, "distill.num_epochs": 2, "outer.num_inits": 2,
      "outer.batch_size": 20, "outer.num_steps": 4, "eval.num_inits": 20, **updates})
  return config


@pytest.fixture(scope="module")
def finished(quick_runs, folder, tmp_path_factory):
  """A run on own data, with an own network and an own outer loss."""
  workdir = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
    patch.syspath_prepend(str(folder))
    result = problem.distill(_config(**{"objective.name": "my_losses:outer"}), workdir)
  _forget()
  return result


def test_every_part_may_be_one_s_own():
  """All of them at once, each seen by what it does."""
  built = problem.make_problem(_config(**{
      "data.name": "my_data:whole", "model.name": "my_nets:noisy", "init.name": "my_nets:halves",
      "inner.loss": "my_losses:direct", "inner.augmentation": "my_nets:negative",
      "outer.augmentation": "my_nets:negative", "objective.name": "my_losses:outer",
      "distill.images": "my_nets:ones"}))
  assert built.data.name == "my_data:whole" and built.data.pixels.mean == [.5]
  assert len(built.data.train[1]) == 60 and built.data.test[0].shape == (30, 6, 6, 1)
  key = jax.random.key(0)
  trainable = built.learned.init(key)
  distilled = built.learned.decode(trainable)
  np.testing.assert_array_equal(distilled.inputs, np.ones((1, 3, 6, 6, 1)))
  params = jax.tree.map(lambda leaf: leaf[0], built.inits.test.sample(key, 1))
  assert {name: leaf.shape for name, leaf in params.items()} == {"w": (36, 3), "b": (3,)}
  assert all((leaf == .5).all() for leaf in params.values())

  trained, losses = built.train(key, params, distilled)
  # direct() of negative images is -2 + b . (0, 1, 2), of slope (0, 1, 2).
  np.testing.assert_allclose(losses, [-.5, -.5 - .02 * 5], rtol=1e-5)
  np.testing.assert_allclose(trained["b"], .5 - .04 * np.arange(3), rtol=1e-5)
  images = jnp.ones((2, 6, 6, 1))
  np.testing.assert_allclose(built.real_loss(params, images, jnp.zeros(2, int)), 7 + 18.5 ** 2)
  np.testing.assert_array_equal(built.augment(key, images), -images)
  outputs = built.apply(params, images, key=key)
  assert (outputs != 18.5).all() and (built.apply(params, images) == 18.5).all()


@pytest.mark.parametrize("updates", [
    {"inner.loss": "my_losses:keyed", "objective.name": "my_losses:direct"},
    {"model.name": "my_nets:noisy", "inner.loss": "my_losses:outer"}])
def test_a_loss_is_given_as_it_is_or_made_of_the_network(updates):
  built = problem.make_problem(_config(**updates))
  key = jax.random.key(0)
  params = jax.tree.map(lambda leaf: leaf[0], built.inits.test.sample(key, 1))
  distilled = built.learned.decode(built.learned.init(key))
  losses = built.train(key, params, distilled)[1]
  expected = (7 + jnp.mean(built.apply(params, distilled.inputs[0]) ** 2)
              if updates["inner.loss"] == "my_losses:outer" else 2 * jnp.mean(distilled.inputs))
  np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


@pytest.mark.parametrize("field, name, message", [
    ("data.name", "my_nets:scale", r"a function of \(\); 'my_nets:scale' is float"),
    ("data.name", "my_nets:tiny", r"\(\); 'my_nets:tiny' is one of \(num_classes, image_shape\)"),
    ("data.name", "my_nets:number", r"the arrays \(train_images, .*'my_nets:number' gives int"),
    ("model.name", "my_nets:scale", r"a maker .* of a dd_jax\.Model; 'my_nets:scale' gives float"),
    ("model.name", "my_nets:one_argument", r"maker .* 'my_nets:one_argument' is one of \(num_cl"),
    ("model.name", "my_nets:number", "maker .* 'my_nets:number' gives int"),
    ("init.name", "my_nets:scale", r"a function of \(model\); 'my_nets:scale' is float"),
    ("init.name", "my_nets:number", "that gives InitDistribution; 'my_nets:number' gives int"),
    ("inner.loss", "my_nets:scale", r"a function of \(params, inputs, labels\); .* is float"),
    ("inner.loss", "my_losses:two", r"\(params, inputs, labels\); .* is one of \(params, labels\)"),
    ("objective.name", "my_nets:scale", r"a function of \(params, inputs, labels\); .* is float"),
    ("objective.name", "my_nets:number", "that gives Callable; 'my_nets:number' gives int"),
    ("distill.images", "my_nets:scale", r"a function of \(shape\); 'my_nets:scale' is float"),
    ("distill.images", "my_nets:number", "that gives Part; 'my_nets:number' gives int"),
    ("inner.augmentation", "my_nets:scale", r"\(key, images\); 'my_nets:scale' is float"),
    ("inner.augmentation", "my_nets:ones", r"\(key, images\); 'my_nets:ones' is one of \(shape\)"),
    ("outer.augmentation", "my_nets:scale", r"\(key, images\); 'my_nets:scale' is float"),
    *((field, name, rf"package\.module:function .*; got '{name}' \(.*{reason}")
      for field in ("data.name", "model.name", "init.name", "inner.loss", "objective.name",
                    "distill.images", "inner.augmentation", "outer.augmentation")
      for name, reason in (("my_missing:load", "No module named 'my_missing'"),
                           ("my_nets:absent", "no attribute 'absent'"))),
])
def test_what_is_missing_or_of_a_wrong_kind_is_one_line(tmp_path, field, name, message):
  with pytest.raises(ValueError, match=message) as error:
    problem.distill(_config(**{field: name}), tmp_path / "run")
  assert str(error.value).startswith(f"{field} must ") and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_file_is_applied_with_the_parts_that_are_named(finished):
  path = finished.workdir / "distilled.npz"
  found = applied.apply(path, network="my_nets:tiny", data="my_data:load")
  assert (found["network"], found["dataset"]) == ("my_nets:tiny", "my_data:load")
  assert found["num_networks"] == 20 and found["num_test"] == 30
  for name in ("accuracy_mean", "accuracy_std", "accuracy_before_mean"):
    np.testing.assert_allclose(found[name], finished.figures[name], atol=1e-3)


def test_data_that_are_prepared_are_taken_as_they_are(finished):
  path = finished.workdir / "distilled.npz"
  built = problem.make_problem(_config(**{"data.name": "my_data:prepared"}))
  assert built.data.name == "my_data:prepared" and len(built.data.train[1]) == 60
  found = applied.apply(path, network="my_nets:tiny", data="my_data:prepared")
  np.testing.assert_allclose(found["accuracy_mean"], finished.figures["accuracy_mean"], atol=1e-3)
  comparison = transfer.get_config("smoke")
  comparison.distilled, comparison.data.name = str(path), "my_data:prepared"
  with pytest.raises(ValueError, match="data.name must give a .*'my_data:prepared' gives Data"):
    applied.compare_networks(comparison, finished.workdir / "transfer")


@pytest.mark.parametrize("given, message", [
    ({}, r"^--data must be given: .* is 'my_data:load', .*; .* use --data=my_data:load$"),
    ({"data": "my_data:load"}, "is 'my_nets:tiny', and .* --network=my_nets:tiny"),
    ({"network": "my_nets:tiny"}, "--data=my_data:load"),
])
def test_a_file_never_causes_an_import(finished, given, message):
  with pytest.raises(ValueError, match=message) as error:
    applied.apply(finished.workdir / "distilled.npz", **given)
  assert "\n" not in str(error.value)
  named = {name.partition(":")[0] for name in given.values()}
  assert named >= {name for name in _MODULES if name in sys.modules}


@pytest.mark.slow
def test_an_own_inner_loss_has_to_be_named_too(tmp_path):
  result = problem.distill(
      _config(**{"inner.loss": "my_losses:direct", "inner.augmentation": "flip"}), tmp_path)
  given = {"network": "my_nets:tiny", "data": "my_data:load"}
  with pytest.raises(ValueError, match="the inner_loss of the file is 'my_losses:direct', and a"):
    applied.apply(tmp_path / "distilled.npz", **given)
  found = applied.apply(tmp_path / "distilled.npz", loss="my_losses:direct", **given)
  np.testing.assert_allclose(found["accuracy_mean"], result.figures["accuracy_mean"], atol=1e-3)
  assert dd_jax.files.artifacts.load(tmp_path / "distilled.npz").metadata["inner_loss"] == (
      "my_losses:direct")


@pytest.mark.parametrize("text, message", [
    ("linear:num_classes=2", "--network: num_classes must be left out for linear, which has no su"),
    ("linear:image_shape=2", "--network: image_shape must be left out for linear"),
    ("mlp:width=3", "--network: width must be left out for mlp, which has no such option; got 3"),
    ("convnet:width=3:width=4", "an option twice"),
    (".my:net", "--network must be package.module:function .* got '.my:net'"),
])
def test_options_of_a_network_that_it_cannot_have(text, message):
  with pytest.raises(ValueError, match=message):
    parts.network(text, 3, (4, 4, 1), "--network")


def test_a_maker_of_any_options_gets_them():
  given = {}

  def net(num_classes, image_shape, **options):
    given.update(options)
    return dd_jax.models.linear(num_classes=num_classes, image_shape=image_shape)

  choices = {**dd_jax.models.MODELS, "any": net}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dd_jax.models, "MODELS", choices)
    parts.make_model("any", 3, (4, 4, 1), {"width": 5}, "model.name")
    with pytest.raises(ValueError, match="^model.num_classes must be left out for any"):
      parts.make_model("any", 3, (4, 4, 1), {"num_classes": 5}, "model.name")
  assert given == {"width": 5}


def test_image_files_are_looked_for_below_the_directory_of_the_data(tmp_path):
  images, labels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4, 1), np.arange(12) % 2
  np.savez(tmp_path / "mine9.npz", train_images=images, train_labels=labels, test_images=images,
           test_labels=labels)
  found = parts.dataset("mine9.npz", str(tmp_path), "data.name")
  np.testing.assert_array_equal(found.train_images, images)


def test_where_no_name_is_known_a_loss_is_one_s_own():
  with pytest.raises(ValueError, match="^--loss must be package.module:function; got 'classific"):
    parts.loss("classification", None, {}, "--loss")
