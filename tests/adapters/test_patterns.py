"""Regular expressions of other people: what Python's engine says, in a bounded number of steps, or a refusal."""

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from lorax_vlm.adapters.pattern_nodes import PatternRefused
from lorax_vlm.adapters.patterns import FirstMatch, FullMatch, Machine
from lorax_vlm.errors import AdapterError
from tests.adapters_for_tests import edit_config

NAMES = (
    "language_model.model.decoder.layers.0.self_attn.q_proj",
    "language_model.model.decoder.layers.11.self_attn.v_proj",
    "vision_model.encoder.layers.2.mlp.fc1",
    "qformer.encoder.layer.1.crossattention.attention.query",
    "language_projection",
    "q_proj",
    "fc1\n",
    "",
    "é.ß.q_proj",
)
USUAL = (
    ".*q_proj",
    ".*(q|v)_proj",
    r".*\.(q_proj|v_proj|fc1)",
    r"language_model\..*\.layers\.\d+\.self_attn\.[qkv]_proj",
    r"language_model\.model\.decoder\.layers\.(0|1|2)\..*",
    r"^(?!vision_model).*proj$",
    r"(?=language)(?:.*\.)?[a-z_]+",
    r"(?P<tower>vision|language)_model\..*",
    r"[^.]+(\.[^.]+){3,7}",
    r".*\.layers\.[0-9]{1,2}\..*",
    r".*\.(?!.*mlp).*",
    r"\w+",
    r"[\w.]+?",
    r".*_proj\Z",
    "q_proj|",
    "()",
)


@pytest.mark.parametrize("pattern", USUAL)
def test_the_usual_ones_mean_what_they_mean_in_python(pattern: str) -> None:
    ours = FullMatch(Machine(), pattern)
    assert {name for name in NAMES if ours(name)} == {name for name in NAMES if re.fullmatch(pattern, name)}


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                "a",
                "b",
                ".",
                "_",
                "0",
                "\\.",
                "\\d",
                "\\w",
                "\\D",
                "[ab]",
                "[^a]",
                "[a-b0]",
                "(",
                ")",
                "(?:",
                "(?=",
                "(?!",
            ),
            *("|", "*", "+", "?", "*?", "{2}", "{1,2}", "{0,}", "^", "$", "\\A", "\\Z", "]", "[", "{", "-", "\\"),
        ]
    ),
    max_size=9,
).map("".join)
TEXTS = st.text("ab._0\n", max_size=6)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(pattern=PIECES, texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_what_is_taken_means_what_it_means_in_python(pattern: str, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sets that may mean something else one day
        try:
            ours = FullMatch(Machine(), pattern)
            found = [ours(text) for text in texts]
        except PatternRefused:
            return
        assert found == [re.fullmatch(pattern, text) is not None for text in texts]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(patterns=st.lists(PIECES, min_size=1, max_size=4, unique=True), text=TEXTS)
def test_the_first_pattern_is_the_one_that_peft_takes(patterns: list[str], text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            place = FirstMatch(Machine(), patterns)(text)
        except PatternRefused:
            return
        missing = "no pattern"
        key = next(
            (p for p in patterns if get_pattern_key([p], text) == p and re.match(rf"(.*\.)?({p})$", text)), missing
        )
    assert (missing if place is None else patterns[place]) == key


HOSTILE = (
    "([a-z_.0-9]+)+!",
    "(a|a)*$",
    "(.*)*x",
    "(.*.*.*.*.*.*)*y",
    "(a?){500}a{500}",
    "((((a{1,9}){1,9}){1,9}){1,9}){1,9}!",
    "(x+x+)+y",
    "(.+)+(.+)+(.+)+z",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    ".*" * 200 + "!",
    "(?=(.*)*x)(?=(.*)*y).*",
    "[^!]" * 900,
    "(" * 500 + ")" * 500,
    "a|" * 3000 + "b",
    "a{1000}" * 50,
    r"(a*)\1",
    "(?<=a)b",
    "(?i)Q_PROJ",
    "(?#x)a",
    "a*+",
    "(?>a)",
    "a{99999}",
    "(?P<n>a)(?P=n)",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: pattern[:20])
def test_none_keeps_anybody_waiting(pattern: str) -> None:
    said = ""
    try:
        ours, first = FullMatch(Machine(), pattern), FirstMatch(Machine(), [pattern])
        for name in (*NAMES, "a" * 500, "x" * 300, "language_model.model.decoder.layers." * 12):
            ours(name)
            first(name)
    except PatternRefused as error:
        said = str(error)
    assert len(said) < 300


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "option", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_a_file_with_such_a_pattern_is_read_or_refused(adapter_folder, option: str) -> None:
    from lorax_vlm.adapters.files import read_adapter_files

    pattern = "([a-z_.0-9]+)+!"
    edit_config(
        adapter_folder, **{option: {pattern: 2} if option.endswith("k_pattern") or "alpha" in option else pattern}
    )
    try:
        files = read_adapter_files(adapter_folder, "it")
        assert not any(files.settings.own_rank(site) for site in files.sites), "it is no end of any name"
    except AdapterError:
        pass
