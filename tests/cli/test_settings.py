"""`--set` and `--config`: from words to a pruner."""

import pytest

from visipruner.cli.errors import CliError
from visipruner.cli.run import chosen, parse_settings, parse_value
from visipruner.errors import ConfigError
from visipruner.pruners.none import NoPruning
from visipruner.pruners.visipruner import VisiPruner
from visipruner.specs import adjusted, resolve


def made(method, pairs, config, model="", layers=32):
    """The pruner that `run` makes of its options."""
    spec, settings = chosen(method, pairs, config)
    return adjusted(spec, settings, model, layers).pruner


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-1e-3", -1e-3),
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("prefix", "prefix"),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("1,2", [1, 2]),
        ("shallow, middle", ["shallow", "middle"]),
    ],
)
def test_values_are_read_as_a_person_means_them(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("pair", ["keep_tokens", "=3", "keep tokens=3", "keep_tokens="])
def test_a_pair_that_is_none_is_named(pair):
    with pytest.raises(CliError, match=r"key=value.*" + pair):
        parse_settings([pair])


def test_a_key_twice_is_an_error():
    with pytest.raises(CliError, match="keep_tokens is given twice"):
        parse_settings(["keep-tokens=1", "keep_tokens=2"])


def test_broken_json_is_named():
    with pytest.raises(CliError, match="starts like JSON but is not"):
        parse_settings(["stages=[shallow"])


def test_methods_and_settings():
    assert made(None, [], None) == VisiPruner()
    assert made("none", [], None) == NoPruning()
    wanted = VisiPruner(keep_tokens=7, stages=("middle",), relative=True, filter_threshold=1.0)
    pairs = ["keep_tokens=7", "stages=middle", "relative=true", "filter_threshold=1"]
    assert made("visipruner", pairs, None) == wanted


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["keep_token=7"], "did you mean 'keep_tokens'"),
        (["keep_tokens=7.5"], "a whole number or none, not 7.5"),
        (["keep_tokens=true"], "a whole number or none, not True"),
        (["keep_tokens=-1"], "negative"),
        (["filter_threshold=high"], "takes a number, not 'high'"),
        (["filter_threshold=1.5"], r"\[-1, 1\]"),
        (["filter_threshold=NaN"], r"\[-1, 1\]"),
        (["token_threshold=-0.1"], "negative"),
        (["relative=0.3"], "true or false, not 0.3"),
        (["stages=shalow"], "'shallow' or 'middle' or 'deep'"),
        (["exit_votes=0"], "at least 1"),
    ],
)
def test_absurd_settings_are_refused_with_a_reason(pairs, message):
    with pytest.raises(ConfigError, match=message):
        made("visipruner", pairs, None)


def test_config_file_holds_everything(tmp_path):
    pruner = VisiPruner(keep_tokens=5)
    file = pruner.save_pretrained(tmp_path)
    assert made(None, [], file) == pruner
    assert made(None, [], tmp_path) == pruner
    for method, pairs in (("visipruner", []), (None, ["keep_tokens=3"])):
        with pytest.raises(CliError, match="leave out --method and --set"):
            made(method, pairs, file)


def test_both_sizes_of_the_small_model_have_its_own_settings_and_the_same_share_of_tokens():
    large, small = (made(None, [], None, model) for model in ("testbed", "testbed-224"))
    assert large != VisiPruner()
    assert large.keep_tokens / 576 == pytest.approx(small.keep_tokens / 256, abs=1 / 256)
    assert resolve("visipruner", "testbed-224", 30).pruner == small
    assert made(None, ["keep_tokens=9"], None, "testbed-224").keep_tokens == 9
