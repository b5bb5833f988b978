"""Config files: overrides, base files, renamed keys."""

import contextlib
import warnings
from pathlib import Path

import pytest

from pipeline.run import RENAMED_KEYS, RunConfig, load_run
from pipeline.runtime.config import ConfigError
from pipeline.runtime.config_files import load_yaml
from pipeline.runtime.reference import sections

RENAMED = {"train.shift": "train.padding", "noise": "start", "noise.deviation": "start.std"}


# Twenty lists of ten, each of ten times the one before: 10^20 values.
ALIAS_BOMB = "x0: &x0 []\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 21))


def write(folder, **files: str):
    """Write YAML files, given by stem; returns the path of the first one."""
    for stem, text in files.items():
        (folder / f"{stem}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


@contextlib.contextmanager
def expect_warnings(*messages: str):
    """Assert that the block warns once for each message, in this order, and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert len(caught) == len(messages)
    for warning, message in zip(caught, messages, strict=True):
        assert message in str(warning.message)


def test_overrides_replace_and_add_yaml_values(tmp_path):
    path = write(tmp_path, a="inner: {rate: 1, steps: 2}\nempty:\n")
    overrides = ["inner.rate=3", "new.deep.key=[1, x]", "empty.key=null", "text=a=b", "inner.rate=4"]
    assert load_yaml(path, overrides) == {
        "inner": {"rate": 4, "steps": 2},
        "empty": {"key": None},
        "new": {"deep": {"key": [1, "x"]}},
        "text": "a=b",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed' must look like key=value"),
        ("=3", "'=3' must look like key=value"),
        ("seed.x=3", r"seed is 1 \(int\), it has no keys"),
        ("seed=[1", r"'\[1' is not a valid YAML value .*write it without them in SET of make: \[1,2\]"),
        ("2]", "'2]' must look like key=value.*quote a value with spaces"),
        ("inner={x: 1, x: 2}", "the key x is given twice"),
        ("seed=" + "[" * 5000, "it is nested too deeply"),
        ("base=b.yaml", "base can only stand in a config file"),
    ],
)
def test_invalid_override_raises(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_yaml(write(tmp_path, a="seed: 1"), [override])


def test_override_of_a_list_item(tmp_path):
    path = write(tmp_path, a="phases: [{steps: 1}, {steps: 2}]\nsizes: [1, 2]")
    plain = load_yaml(path, ["phases.1.steps=20", "phases.0.scale=0.5", "sizes.1=7"])
    assert plain == {"phases": [{"steps": 1, "scale": 0.5}, {"steps": 20}], "sizes": [1, 7]}


@pytest.mark.parametrize(
    "override", ["phases.2.steps=1", "phases.-1.steps=1", "phases.x.steps=1", "sizes.2=1", "sizes.x=1"]
)
def test_override_of_a_missing_list_item_raises(tmp_path, override):
    path = write(tmp_path, a="phases: [{steps: 1}, {steps: 2}]\nsizes: [1, 2]")
    key, _, item = override.partition("=")[0].removesuffix(".steps").partition(".")
    message = rf"{key} has the items 0 to 1, not {item}; to add one, write the whole list: {key}=\[\.\.\.\]"
    with pytest.raises(ConfigError, match=f"override '{override}': {message}"):
        load_yaml(path, [override])


@pytest.mark.parametrize(("items", "words"), [("[]", "is an empty list"), ("[5]", "has the item 0, not 1")])
def test_override_of_a_missing_item_of_a_short_list_raises(tmp_path, items, words):
    with pytest.raises(ConfigError, match=f"override 'sizes.1=3': sizes {words}; to add one"):
        load_yaml(write(tmp_path, a=f"sizes: {items}"), ["sizes.1=3"])


def test_file_without_a_mapping_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml must hold a mapping of keys to values, it holds \[1\]"):
        load_yaml(write(tmp_path, a="[1]"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x: 1\ny: 2\nx: 3", "line 3: the key x is given twice; remove one of them"),
        ("x: {y: 1,\n  y: 1}", "line 2: the key y is given twice; remove one of them"),
        ("x: 1\ny: [2", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("x: \x01", "special characters are not allowed, position 3"),
        ("x: " + "[" * 5000 + "]" * 5000, "it is nested too deeply, or contains itself"),
        ("x: &x [*x]", "it is nested too deeply, or contains itself"),
        ("x: 1\ny: !!int a", "line 2: a value is not of its kind (invalid literal for int() with base 10: 'a')"),
        ("x: 1\ny: !!bool a", "line 2: a value is not of its kind ('a')"),
        ("x: !!set {y}", "{'y'} is no text, number, list or mapping"),
        ("[1]: 2", "line 1: a key must be text"),
        (ALIAS_BOMB, "it holds more than 1,000,000 values, aliases counted as copies"),
    ],
)
def test_invalid_yaml_raises_with_file_and_line(tmp_path, text, problem):
    path = write(tmp_path, a=text)
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert str(error.value) == f"{path} is not valid YAML: {problem}"


def test_a_date_is_text(tmp_path):
    assert load_yaml(write(tmp_path, a="x: 2020-01-31\ny: 2020-13-45")) == {"x": "2020-01-31", "y": "2020-13-45"}


def test_a_number_of_thousands_of_digits_raises_with_file_and_line(tmp_path):
    path = write(tmp_path, a="x: " + "9" * 5000)
    with pytest.raises(ConfigError, match=rf"^{path} is not valid YAML: line 1: a value is not of its kind"):
        load_yaml(path)


def test_what_is_merged_again_and_again_counts_once(tmp_path):
    merges = "".join(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, 31))
    assert load_yaml(write(tmp_path, a="x0: &x0 {y: 1}\n" + merges))["x30"] == {"y": 1}


def test_key_can_override_one_that_it_merges(tmp_path):
    path = write(tmp_path, a="x: &x {y: 1, z: 1}\nw: &w {<<: *x, y: 2}\nv: {<<: *w, z: 3}")
    assert load_yaml(path)["v"] == {"y": 2, "z": 3}


def test_mappings_are_merged_with_the_base_at_every_level(tmp_path):
    path = write(tmp_path, a="{base: b.yaml, x: {y: {own: 1}}}", b="{x: {y: {own: 0, kept: 2}, kept: 3}, kept: 4}")
    assert load_yaml(path) == {"x": {"y": {"own": 1, "kept": 2}, "kept": 3}, "kept": 4}


@pytest.mark.parametrize("value", ["[1]", "null", "5", "text"])
@pytest.mark.parametrize("inherited", ["[1, 2]", "{key: 1}", "7"])
def test_lists_scalars_and_null_replace_inherited_values(tmp_path, value, inherited):
    path = write(tmp_path, a=f"{{base: b.yaml, x: {value}}}", b=f"{{x: {inherited}}}")
    assert load_yaml(path) == load_yaml(write(tmp_path, c=f"{{x: {value}}}"))


def test_mapping_replaces_an_inherited_null(tmp_path):
    assert load_yaml(write(tmp_path, a="{base: b.yaml, x: {y: 1}}", b="x: null")) == {"x": {"y": 1}}


def test_base_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared", b="{base: c.yaml, y: 2}", c="{x: 1, y: 1, z: 1}")
    path = write(tmp_path, a="{base: shared/b.yaml, z: 3}")
    assert load_yaml(path) == {"x": 1, "y": 2, "z": 3}


def test_later_base_overrides_earlier_base(tmp_path):
    path = write(tmp_path, a="{base: [b.yaml, c.yaml], z: 3}", b="{x: 1, y: 1, z: 1}", c="{y: 2, z: 2}")
    assert load_yaml(path) == {"x": 1, "y": 2, "z": 3}


def test_two_bases_can_share_a_base(tmp_path):
    path = write(tmp_path, a="base: [b.yaml, c.yaml]", b="base: d.yaml", c="{base: d.yaml, y: 1}", d="x: 1")
    assert load_yaml(path) == {"x": 1, "y": 1}


def test_name_is_not_inherited(tmp_path):
    path = write(tmp_path, a="{base: b.yaml}", b="{name: other, model: {name: kept}}")
    assert load_yaml(path) == {"model": {"name": "kept"}}


def test_override_has_precedence_over_file_and_base(tmp_path):
    path = write(tmp_path, a="{base: b.yaml, x: {y: 2}}", b="x: {y: 1, z: 1}")
    assert load_yaml(path, ["x.y=3"]) == {"x": {"y": 3, "z": 1}}


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "base: a.yaml"}, "a.yaml -> a.yaml"),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: a.yaml"}, "a.yaml -> b.yaml -> c.yaml -> a.yaml"),
        ({"a": "base: b.yaml", "b": "base: [c.yaml, b.yaml]", "c": "x: 1"}, "b.yaml -> b.yaml"),
    ],
)
def test_circular_base_raises(tmp_path, files, chain):
    with pytest.raises(ConfigError, match=rf"base: \w\.yaml forms a cycle \({chain}\)"):
        load_yaml(write(tmp_path, **files))


def test_missing_base_raises_with_the_files_of_the_folder(tmp_path):
    path = write(tmp_path, a="base: digitz.yaml", digits="x: 1")
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert str(error.value) == (
        f"{path}: base: there is no file {tmp_path / 'digitz.yaml'}; did you mean digits.yaml? "
        "(the folder holds a.yaml, digits.yaml; the path is relative to the file that names it)"
    )
    with pytest.raises(ConfigError, match=r"there is no file .*/nix\.yaml \(the folder holds a\.yaml, digits\.yaml;"):
        load_yaml(write(tmp_path, a="base: nix.yaml"))


@pytest.mark.parametrize("value", ["3", "null", "''", "[b.yaml, 3]", "{b.yaml: 1}"])
def test_base_that_is_not_a_file_name_raises(tmp_path, value):
    path = write(tmp_path, a=f"base: {value}", b="x: 1")
    with pytest.raises(ConfigError, match=r"a\.yaml: base: expected a file name or a list of file names, got"):
        load_yaml(path)


def test_old_key_in_a_file_is_renamed_with_a_warning(tmp_path):
    path = write(tmp_path, a="train: {shift: 1}")
    with expect_warnings(f"{path}: train.shift is now train.padding"):
        assert load_yaml(path, (), RENAMED) == {"train": {"padding": 1}}


def test_renamed_section_with_a_renamed_key(tmp_path):
    path = write(tmp_path, a="noise: {deviation: 1, spectrum: 2}")
    with expect_warnings("noise is now start", "noise.deviation is now start.std"):
        assert load_yaml(path, (), RENAMED) == {"start": {"std": 1, "spectrum": 2}}


def test_new_key_overrides_old_key_of_the_base(tmp_path):
    path = write(tmp_path, a="{base: b.yaml, train: {padding: 2}}", b="train: {shift: 1}")
    with expect_warnings("b.yaml: train.shift is now train.padding"):
        assert load_yaml(path, (), RENAMED) == {"train": {"padding": 2}}


@pytest.mark.parametrize("override", ["start={std: 2}", "start.std=2"])
def test_override_of_a_new_key_does_not_warn(tmp_path, override):
    with expect_warnings():
        assert load_yaml(write(tmp_path, a="start: {std: 1}"), [override], RENAMED) == {"start": {"std": 2}}


@pytest.mark.parametrize("override", ["noise={deviation: 2}", "noise.deviation=2"])
def test_override_of_an_old_key_sets_the_new_key(tmp_path, override):
    path = write(tmp_path, a="start: {std: 1}")
    message = f"override '{override}': "
    with expect_warnings(f"{message}noise is now start", f"{message}noise.deviation is now start.std"):
        assert load_yaml(path, [override], RENAMED) == {"start": {"std": 2}}


@pytest.mark.parametrize("text", ["train: {shift: 1, padding: 2}", "{start: {std: 1}, noise: {spectrum: 1}}"])
def test_old_and_new_key_in_one_file_raise(tmp_path, text):
    with pytest.raises(ConfigError, match=r"a\.yaml: (\S+) is the old name of (\S+), and both are given; remove \1"):
        load_yaml(write(tmp_path, a=text), (), RENAMED)


def test_old_and_new_key_in_one_override_raise(tmp_path):
    with pytest.raises(ConfigError, match=r"override 'train=.*': train\.shift is the old name"):
        load_yaml(write(tmp_path, a="x: 1"), ["train={shift: 1, padding: 2}"], RENAMED)


def test_renamed_keys_map_removed_keys_to_present_ones():
    keys = {f"{place}.{key.name}" for s in sections(RunConfig) for place in s.places for key in s.keys}
    assert set(RENAMED_KEYS.values()) <= keys
    assert not keys & RENAMED_KEYS.keys()


def test_config_of_the_last_release_loads_with_warnings(tmp_path):
    text = """
    images: {channels: 3, height: 32, width: 32, num_classes: 10}
    data: {train: "torchvision:CIFAR10", test: "torchvision:CIFAR10"}
    teacher: {source: "cifar10:resnet8"}
    teacher_training: {steps: 1, batch_size: 2, lr: 0.1, augment: {shift_px: 3}}
    student: {source: "cifar10:resnet8"}
    synthesis:
      num_images: 3
      batch_size: 3
      inversion: {phases: [{steps: 1}], shift_px: 2, canvas: {spectrum: 1.5, deviation: 0.5}, terms: {}}
    distill: {steps: 1, batch_size: 2, lr: 0.1, augment: {shift_px: 4}}
    """
    with expect_warnings(
        "training.augment.shift_px", "inversion.shift_px", "canvas", "deviation", "distill.augment.shift_px"
    ):
        config = load_run(write(tmp_path, a=text))
    inversion, noise = config.synthesis.inversion, config.synthesis.inversion.init_noise
    assert (inversion.jitter_px, noise.spectrum, noise.std) == (2, 1.5, 0.5)
    assert config.teacher_training and config.teacher_training.augment.crop_padding_px == 3
    assert config.distill.augment.crop_padding_px == 4


def test_run_with_a_base_has_the_name_of_its_own_file(tmp_path):
    digits = Path(__file__).parents[2] / "configs" / "digits.yaml"
    config = load_run(write(tmp_path, mine=f"{{base: '{digits}', seed: 7}}"))
    assert (config.name, config.seed, config.images.height) == ("mine", 7, 8)
