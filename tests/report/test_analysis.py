"""The page of an analysis: whole, self-contained, escaped, repeatable, small, and honest about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.analysis.planted import turned
from tests.report import cases
from visipruner.analysis.boundaries import Metric
from visipruner.analysis.measuring import NEEDED_FOR_STAGES
from visipruner.analysis.report import render, write_report
from visipruner.analysis.report.explorer import MOST_BYTES, choose, explorer_data
from visipruner.analysis.report.figures import headline_figure
from visipruner.analysis.report.tables import facts
from visipruner.analysis.report.words import fusion_in, loss
from visipruner.analysis.result import ENOUGH

ALL = {
    "stages", "kinds", "explorer", "knockouts", "shallow", "sinks", "stability", "removal", "scores", "lens", "tests",
    "check", "paper", "cost", "settings", "limits",
}  # fmt: skip
ALWAYS = {"cost", "settings", "limits"}
STAGED = NEEDED_FOR_STAGES
NEEDS = {
    "attention": {"explorer", "sinks", "stability"},
    "sweeps": {"stages", "kinds", "knockouts", "paper"},
    "shallow": {"shallow", "paper"},
    "skip": {"removal", "paper"},
    "freeze_blocks": {"removal"},
    "cache": {"removal", "paper"},
    "influence": {"explorer", "stability", "tests"},
    "scores": {"scores", "paper"},
    "lens": {"explorer", "lens", "paper"},
}


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def _sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)"', page))


def _ids(page: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', page)


def _falls(page: str) -> str:
    """Where quality falls below layer k, from the table beside the paper."""
    found = re.search(r"where quality falls</th><td>[^<]*</td><td>([^<]*)</td>", page)
    assert found is not None
    return found[1]


def _explorer(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_has_every_section_and_links_to_it(page: str) -> None:
    assert _sections(page) == ALL
    assert set(re.findall(r'<a href="#(\w+)"', page)) == ALL


def test_tells_what_the_settings_lose_together(page: str) -> None:
    assert re.search(
        r"all parts at work together.*0\.045.*themselves lose 0\.025.*in sum\s+\(3 combinations tried\)",
        page,
        re.DOTALL,
    )


@pytest.mark.parametrize("parts", [("lens",), ("sweeps",), STAGED])
def test_few_images_are_said_to_be_few_once(parts: tuple[str, ...], tmp_path: Path) -> None:
    found, more = (cases.records(tmp_path, count, parts=parts) for count in (4, 20))
    page = render(cases.document(found), found)
    assert page.count("Only 2 images were analysed: the 95 % intervals of so few are too narrow") == 1
    assert page.count("Only one image was used for the check") == (parts == STAGED)
    assert "too narrow" not in render(cases.document(more, checked=False), more)


@pytest.mark.parametrize("part", NEEDS)
def test_leaves_out_what_was_not_measured(part: str, tmp_path: Path) -> None:
    found = cases.records(tmp_path, 4, parts=(part,))
    page = render(cases.document(found), found)
    assert _sections(page) == NEEDS[part] | ALWAYS
    assert set(re.findall(r'<a href="#(\w+)"', page)) == NEEDS[part] | ALWAYS


def test_saves_the_headline_beside_the_page(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "headline.png") as picture:
        assert picture.width >= 1200
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    found = cases.records(tmp_path, 2, parts=("lens",))
    write_report(tmp_path / "report.html", cases.document(found), found)
    assert not (tmp_path / "headline.png").exists()


def test_every_figure_says_what_it_shows(page: str) -> None:
    figures = re.findall(r"<figure(?: class=\"(\w*)\")?>(.*?)</figure>", page, re.DOTALL)
    assert len(figures) > 15
    for kind, figure in figures:
        if kind != "view":
            assert "<svg" in figure
            assert "<h3>" in figure
            assert kind == "small" or re.search(r"<figcaption>.*\d+ (samples|pairs)", figure, re.DOTALL)


def test_escapes_what_data_bring(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<b>1</b>" not in page
    # Our own two scripts and nothing else.
    assert page.count("<script") == page.count("</script>") == 2
    first = _explorer(page)["samples"][0]
    assert cases.HOSTILE in first["question"]
    assert first["lens"]["words"][0][0] == "</script>"


def test_names_no_address_and_no_folder(page: str, folder: Path) -> None:
    assert re.findall(r"\w+://", page) == []
    assert set(re.findall(r'(?:src|href)="([^#"]*)', page)) <= {"data:,", ""}
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    assert str(folder) not in page


def test_ids_are_unique(page: str) -> None:
    assert len(_ids(page)) == len(set(_ids(page)))


def test_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = cases.records(folder)
    write_report(tmp_path / "report.html", cases.document(found), found)
    for name in ("report.html", "headline.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_shows_agreement_where_no_answer_is_known(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 4, answers_known=False)
    document = cases.document(found)
    assert document["dense"]["accuracy"] is None
    page = render(document, found)
    # Both measures that are left stand in the first figure.
    assert _sections(page) == ALL - {"knockouts"}
    assert "same answer as dense, %" in page
    assert "accuracy, %" not in page
    assert "nan" not in re.findall(r">([^<]*)<", page)
    assert "(wrong)" not in page


def test_budgets_can_be_shares(tmp_path: Path) -> None:
    found = cases.records(tmp_path)
    made = cases.document(found)
    made["scores"]["budget"], made["budgets"]["budget"] = [1 / 32, 1 / 8], [1 / 4]
    made["stages"]["filter"]["budget"] = 1 / 8
    made["stages"]["pruner"] = {"shallow_end": 1, "filter_layer": 2, "keep_tokens": None, "keep_ratio": 1 / 4}
    made["stages"]["attempts"][1]["settings"] = made["stages"]["pruner"]
    page = render(made, found)
    assert "3.125 % of the tokens go on" in page
    assert len(_ids(page)) == len(set(_ids(page)))
    assert "proposed filter: after layer 2, 25 % of the tokens go on" in page
    assert "after layer 3 the 12.5 % of the most influential tokens" in page
    assert "only tokens the proposed filter keeps (25 % after layer 2)" in page
    assert f" of {cases.TOKENS} tokens" not in page
    assert [len(sample["kept"]) for sample in _explorer(page)["samples"]] == [round(cases.TOKENS / 4)] * len(found)


@pytest.mark.parametrize(
    ("metric", "tolerance"), [("kl", "0.05 nats"), ("agreement", "5 points"), ("accuracy", "2 points")]
)
def test_shows_what_stages_were_read_off(metric: Metric, tolerance: str, tmp_path: Path) -> None:
    found = cases.records(tmp_path, 4, parts=STAGED)
    page = render(cases.document(found, metric=metric), found)
    assert f"tolerance, {tolerance}" in page
    assert f"no more than {tolerance} (" in page
    assert "dense model" in page


def test_shows_a_model_without_stages(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 4, parts=STAGED)
    document = cases.document(found, checked=False)
    nothing: dict[str, Any] = {"shallow_end": None, "exit_layer": None, "fusion": []}
    document["stages"]["overall"] |= nothing
    document["stages"] |= {"filter": None, "pruner": None, "notes": ["Nothing was found."]}
    page = render(document, found)
    assert "no deep stage" in page
    assert _falls(page) == "from k = 1 on"
    assert "Nothing was found." in page
    assert "The data support no settings" in page
    document["stages"]["overall"]["needs_image"] = False
    page = render(document, found)
    assert "no stages: answers do not depend on the image" in page
    assert _falls(page) == "nowhere"


@pytest.mark.parametrize(
    ("value", "metric", "told"),
    [(1.0, "accuracy", "100 points"), (0.996, "agreement", "100 points"), (0.0212, "accuracy", "2.1 points"),
     (0.041, "kl", "0.041 nats"), (123.4, "kl", "123 nats")],
)  # fmt: skip
def test_losses_are_told_without_exponents(value: float, metric: Metric, told: str) -> None:
    assert loss(value, metric) == told


def test_explorer_holds_the_numbers(folder: Path, page: str) -> None:
    sample = _explorer(page)["samples"][0]
    record = next(r for r in cases.records(folder) if r["question"] == sample["question"])
    weights = np.array(record["parts"]["attention"]["attention"]["arrays"]["map"]["values"])
    stored = np.frombuffer(base64.b64decode(sample["attention"]["data"]), np.uint8).reshape(weights.shape)
    most = np.array(sample["attention"]["most"])[:, None]
    np.testing.assert_allclose(stored / 255 * most, weights, atol=float(weights.max()) / 400)
    norms = np.array(record["parts"]["influence"]["influence"]["arrays"]["norm"]["values"])[2]
    assert set(sample["kept"]) == set(np.argsort(-norms)[:6].tolist())
    assert sample["grid"] == [cases.ROWS, cases.COLUMNS]
    assert sample["image"].startswith("data:image/jpeg;base64,")


def test_explorer_covers_kinds_before_it_repeats_one(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 8)
    chosen = choose(found, 4)
    assert {record["type"] for record in chosen[:3]} == {record["type"] for record in found}
    assert len({json.dumps(record) for record in choose(found, 99)}) == 8


def test_explorer_tells_what_it_cannot_show(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 2)
    (tmp_path / "picture-0.png").unlink()
    found[1]["grids"] = [[2, 5], [2, 5]]
    data = explorer_data(cases.document(found), found)
    assert data is not None
    by_question = {sample["question"]: sample for sample in data["samples"]}
    gone, several = (by_question[record["question"]] for record in found)
    assert gone["image"] is None
    assert "picture-0.png can no longer be read" in gone["missing"]
    assert gone["grid"] == [cases.ROWS, cases.COLUMNS]
    assert several["grid"] is None


def test_explorer_shows_pictures_as_the_model_saw_them(tmp_path: Path) -> None:
    [record] = cases.records(tmp_path, 1)
    record["image"] = str(turned(tmp_path).image)
    data = explorer_data(cases.document([record]), [record])
    assert data is not None
    shown = base64.b64decode(data["samples"][0]["image"].partition(",")[2])
    assert Image.open(io.BytesIO(shown)).size == (40, 60)


def test_page_stays_small_with_large_maps(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 8, parts=("attention", "influence"))
    document = cases.document(found)
    tokens, layers = 9000, 40
    numbers = np.random.default_rng(0).random((layers, tokens)).round(3).tolist()
    for record in found:
        record["visual_tokens"] = tokens
        for part, name in (("attention", "map"), ("influence", "norm")):
            record["parts"][part][part]["arrays"][name]["values"] = numbers
    data = explorer_data(document, found)
    assert data is not None
    assert 1 <= len(data["samples"]) < 8
    assert len(json.dumps(data)) <= MOST_BYTES
    assert len(render(document, found)) < 5_000_000


def test_settings_are_told_beside_the_dense_model_on_the_same_samples(tmp_path: Path) -> None:
    found = cases.records(tmp_path, parts=STAGED)
    document = cases.document(found)
    dense, proposed = document["check"]
    dense["accuracy"] = {"value": 1.0, "low": None, "high": None}
    proposed["accuracy"] = {"value": 0.75, "low": None, "high": None}
    [told] = [meaning for name, _, meaning in facts(document) if name == "proposed settings cut"]
    assert told == "of FLOPs; accuracy 75.0 %, dense 100.0 %, on 4 samples of other images"
    [told] = [meaning for name, _, meaning in facts(document) if name == "dense accuracy"]
    assert told.startswith("of these samples; 95 %: ")


def test_one_image_has_no_intervals(tmp_path: Path) -> None:
    found = cases.records(tmp_path, 2)
    document = cases.document(found, checked=False)
    assert document["dense"]["images"] == 1
    curve = document["sweeps"]["discard"]["kl"]
    assert curve["images"] == 1
    assert curve["low"] == curve["high"] == [None] * len(curve["mean"])
    document["stages"]["overall"] |= {"shallow_end": {"value": 2.0, "low": None, "high": None}}
    document["stages"]["attempts"][1]["loss"] = {"value": 0.045, "low": None, "high": None}
    page = render(document, found)
    assert "2 samples, one image: no intervals." in page
    assert "bands and whiskers" not in page
    assert not re.search(r"<td>[^<]*\d \(\d", page.split('id="check"')[0].split('id="scores"')[-1])
    assert {name: meaning for name, _, meaning in facts(document)}["shallow ends at"] == "one image"


def test_bands_of_few_images_do_not_pile_up(tmp_path: Path) -> None:
    few, enough = (cases.records(tmp_path, count, parts=STAGED) for count in (8, 20))
    made = [cases.document(found) for found in (few, enough)]
    bands = [len(headline_figure(document).axes[1].collections) for document in made]
    assert bands == [0, 5]  # of four curves, and one for the legend
    assert "too few for bands" in render(made[0], few)
    page = render(made[1], enough)
    assert "too few for bands" not in page
    kinds = [kind["kl"]["images"] for kind in made[1]["sweeps"]["discard"]["by_type"].values()]
    assert max(kinds) < ENOUGH  # no kind's panel has a band


@pytest.mark.parametrize(
    ("fusion", "told"), [([(15, 15)], "layer 15"), ([(13, 15)], "layers 13–15"), ([(8, 9), (23, 23)], "layers 8–9, 23")]
)
def test_a_single_layer_is_told_as_one(fusion: list[tuple[int, int]], told: str) -> None:
    assert fusion_in([{"first_layer": first, "last_layer": last} for first, last in fusion]) == told


def test_a_window_of_one_layer_is_told_as_one(tmp_path: Path) -> None:
    found = cases.records(tmp_path)
    for record in found:
        record["plan"] |= {"window": 1, "shallow": 1, "block": 1}
    page = render(cases.document(found), found)
    assert re.findall(r"[Ll]ayers (\d+)(?:–|-)\1\b", page) == []
    assert "1 layers" not in page
    assert "Layer 0 changed" in page
    assert "layer k frozen" in page
