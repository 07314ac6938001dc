"""The tab Model: the whole model in one picture, its zoom levels, addresses that name them, and pictures as files."""

import re
import struct
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser import LANGUAGES, Visit, axe_violations, load_sentences, open_page, parse_number, save_file, wait_until
from serving import RunningServer
from sites import TEXT, Runs

STAGE = ".flow [role=application]"
READOUT = ".flow .readout"


def readout(visit: Visit) -> str:
    return re.sub("[\u2068\u2069]", "", visit.page.locator(READOUT).inner_text())


# The numbers


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_the_table_of_the_whole_model_equals_the_api(visit: Visit, site: RunningServer, model: str) -> None:
    text = {"letters": TEXT, "bytes": "the بيت 🦉 cat"}[model]
    visit.open_tab("model", model, text)
    view = site.view("flow", model, text=text)
    *stages, predictions = visit.table(".flow")
    assert len(stages) == len(view["norms"]) == 5
    for row, norms in zip(stages, view["norms"], strict=True):
        assert [parse_number(cell) for cell in row[1:]] == pytest.approx(norms, abs=6e-3)
    assert predictions[1:] == [view["vocabulary"][str(id)] for id in view["predictions"]]


def test_arrow_keys_reach_every_stage_and_token(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    view = site.view("flow", text=TEXT)
    labels = [token["label"] for token in view["tokens"]]
    stage = page.locator(STAGE)
    stage.press("Home")
    stage.press("PageUp")
    assert f"{labels[0]} at position 0 enters the model" in readout(visit)
    assert parse_number(readout(visit).split("norm")[1]) == pytest.approx(view["norms"][0][0], abs=6e-3)
    for _ in range(6):
        stage.press("ArrowRight")
    for row in range(1, 5):
        stage.press("ArrowDown")
        text = readout(visit)
        layer, part = (row - 1) // 2, "attention" if row % 2 else "the MLP"
        assert text.startswith(f"{labels[6]} after {part} of layer {layer}")
        norm, added = (parse_number(each) for each in re.findall(r"(?:norm|added) (-?[\d.,]+)", text))
        assert norm == pytest.approx(view["norms"][row][6], abs=6e-3)
        assert added == pytest.approx(view["attention" if row % 2 else "mlp"][layer][6], abs=6e-3)
        # The named sources are the tokens with the largest mean shares.
        mean = [sum(head[6][s] for head in view["patterns"][layer]) / 2 / 10 for s in range(7)]
        shares = [float(each) for each in re.findall(r"(\d+)%", text)]
        assert shares == pytest.approx(sorted(mean, reverse=True)[: len(shares)], abs=0.6)
    stage.press("ArrowDown")
    prediction = view["vocabulary"][str(view["predictions"][6])]
    assert f"After {labels[6]} the model expects {prediction}" in readout(visit)
    assert f"continues with {labels[7]}" in readout(visit)


def test_zoom_goes_from_the_whole_to_a_layer_a_head_and_a_number(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    stage = page.locator(STAGE)
    pressed = page.locator(".levels [aria-pressed=true]")
    for key in ("End", "PageUp", "ArrowDown", "ArrowDown", "ArrowDown", "Enter"):  # to attention of layer 1
        stage.press(key)
    wait_until(lambda: pressed.text_content() == "One layer", page)
    assert "#model/layer?" in page.url
    assert page.locator("#model-layer").input_value() == "1"
    stage.press("ArrowDown")
    stage.press("ArrowDown")  # the mean of all heads, head 0, head 1
    assert readout(visit).startswith("Head 1.")
    stage.press("Enter")
    wait_until(lambda: pressed.text_content() == "One head", page)
    weights = site.view("attention", text=TEXT, layer=1, head=1)["weights"]
    shown = parse_number(readout(visit).split("share of")[1])
    assert shown == pytest.approx(100 * max(weights[-1]), abs=0.1)
    for row, expected in zip(visit.table(".flow"), weights, strict=True):
        assert [parse_number(cell) for cell in row[1:] if cell] == pytest.approx([100 * w for w in expected], abs=0.06)
    stage.press("Enter")  # to the numbers
    page.locator("#panel-walk").wait_for()
    visit.settle()
    assert page.locator(".steps .mono").text_content() == "8 / 18"
    assert [page.locator(f"#walk-{name}").input_value() for name in ("layer", "head")] == ["1", "1"]
    page.go_back()
    page.locator("#panel-model").wait_for()
    assert pressed.text_content() == "One head"
    stage.press("Escape")
    stage.press("Escape")
    assert pressed.text_content() == "Whole model"
    page.go_back()
    wait_until(lambda: pressed.text_content() == "One layer", page)


def test_a_click_leads_into_the_layer_below_the_pointer(visit: Visit) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    box = page.locator(".flow canvas").bounding_box()
    assert box
    page.locator(".flow canvas").click(position={"x": box["width"] / 2, "y": box["height"] * 0.2})
    page.locator(".levels [aria-pressed=true]").get_by_text("One layer").wait_for()
    assert page.locator("#model-layer").input_value() == "0"
    page.locator(".stage-links button").first.click()  # ln_1
    page.locator("#panel-walk").wait_for()
    visit.settle()
    assert page.locator(".steps .mono").text_content() == "5 / 18"


# Motion


def test_the_picture_moves_until_it_is_paused(chromium: Browser, site: RunningServer) -> None:
    with open_page(chromium, site.url, reduced_motion="no-preference") as visit:
        page = visit.open_tab("model", "letters", TEXT).page
        picture = "document.querySelector('.flow canvas').toDataURL()"
        first = page.evaluate(picture)
        wait_until(lambda: page.evaluate(picture) != first, page)
        page.wait_for_function("() => !document.querySelector('#panel-model figure').revealStart")
        page.get_by_text("Pause", exact=True).click()
        page.wait_for_function("() => document.querySelector('#panel-model figure').frame === null")
        still = page.evaluate(picture)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate(picture) == still
        visit.assert_no_faults()


def test_nothing_moves_for_users_who_prefer_that(visit: Visit) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    assert page.evaluate("document.querySelector('#panel-model figure').frame ?? null") is None
    assert not page.get_by_text("Pause", exact=True).is_visible()


# The tour


def test_the_tour_stops_at_eight_places_and_says_what_to_try(visit: Visit) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    page.get_by_text("Tour", exact=True).click()
    card = page.get_by_role("dialog")
    titles = []
    for stop in range(8):
        page.locator(".tour-target:visible").wait_for()
        visit.settle()
        assert card.locator(".quiet").inner_text() == f"Stop {stop + 1} of 8"
        titles.append(card.locator("h2").inner_text())
        assert "Try it:" in card.inner_text()
        assert card.locator("h2").evaluate("each => each === document.activeElement")
        if stop in (0, 3):
            visit.choose(language="ar")
            assert axe_violations(visit, without=["color-contrast"]) == []
            visit.choose(language="en")
        card.locator("button.main").click()
    assert len(set(titles)) == 8
    assert card.count() == 0
    assert page.locator(".tour-target").count() == 0
    page.get_by_text("Tour", exact=True).click()
    card.wait_for()
    page.keyboard.press("Escape")
    assert card.count() == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tour_runs_to_its_end(chromium: Browser, site: RunningServer, language: str) -> None:
    sentences = load_sentences(language)
    with open_page(chromium, site.url, locale=language) as visit:
        page = visit.open_tab("model", "letters", TEXT).page
        page.get_by_role("button", name=sentences["tour.start"], exact=True).click()
        card = page.get_by_role("dialog")
        for stop in ("tokens", "sum", "whole", "heads", "attention", "mlp", "next", "training"):
            page.locator(".tour-target:visible").wait_for()
            visit.settle()
            for part, shown in (("title", card.locator("h2")), ("says", card.locator("p").nth(1))):
                plain = re.sub("[\u2066-\u2069]", "", shown.inner_text())
                assert re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(sentences[f"tour.{stop}.{part}"])), plain)
            assert card.locator("h2").evaluate("each => each.getBoundingClientRect().top < innerHeight")
            card.locator("button.main").click()
        assert card.count() == 0
        visit.assert_no_faults()


# The address


def test_a_link_shows_the_same_model_step_text_head_and_token(
    visit: Visit, chromium: Browser, site: RunningServer
) -> None:
    first = min(site.models["letters"].steps)
    text = "the mat & the cat? 50% #1 + é"
    page = visit.open_tab("attention", "letters", text).page
    page.locator("#step").select_option(str(first))
    visit.settle()
    for name in ("layer", "head"):
        page.locator(f"#attention-{name}").select_option("1")
        visit.settle()
    page.locator(".arcs .token").nth(9).click()
    wait_until(lambda: "position=9" in page.url, page)
    table = visit.table("#panel-attention .matrix >> nth=1")
    with open_page(chromium, site.url) as other:
        other.page.goto(page.url)
        other.page.locator("#panel-attention .arcs").wait_for()
        other.settle()
        assert other.page.locator("#text").input_value() == text
        assert other.page.locator("#model").input_value() == "letters"
        assert other.page.locator("#step").input_value() == str(first)
        assert [other.page.locator(f"#attention-{name}").input_value() for name in ("layer", "head")] == ["1", "1"]
        assert other.table("#panel-attention .matrix >> nth=1") == table
        assert other.page.locator(".arcs .token.chosen").count() == 1
        other.assert_no_faults()


@pytest.mark.parametrize(
    "address",
    ["#model?model=nothing&step=77&layer=99&head=x&position=5000", "#nothing?text=%00", "#walk/99?%", "#?model"],
)
def test_an_address_that_names_what_does_not_exist_is_no_error(visit: Visit, address: str) -> None:
    page = visit.page
    page.goto(f"{visit.url}/{address}")
    page.locator("main figure").first.wait_for()
    visit.settle()
    assert page.get_by_role("alert").count() == 0
    visit.assert_no_faults()


def test_a_long_text_is_not_in_the_address_and_survives_a_reload(visit: Visit) -> None:
    text = TEXT * 120
    page = visit.open_tab("model", "letters").page
    visit.open_tab("model", text=text)
    assert "text=" not in page.url
    page.get_by_text("Copy link").click()
    page.get_by_text("without the text").wait_for()
    page.reload()
    page.locator("#panel-model canvas").first.wait_for()
    assert page.locator("#text").input_value() == text


# Files


def test_a_picture_can_be_saved_as_png(visit: Visit) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    content = save_file(visit, page.locator(".flow .save button").filter(has_text="PNG"))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    box = page.locator(".flow canvas").bounding_box()
    assert box
    assert width >= 2 * box["width"]
    assert height >= 2 * box["height"]


def test_the_page_can_be_saved_as_one_file(visit: Visit, runs: Runs, tmp_path: Path, chromium: Browser) -> None:
    page = visit.open_tab("model", "letters", TEXT).page
    file = tmp_path / "page.html"
    file.write_bytes(save_file(visit, page.get_by_text("Save page")))
    with open_page(chromium, file.as_uri()) as other:
        other.page.goto(file.as_uri())
        other.page.locator("#panel-model .flow canvas").wait_for()
        other.settle()
        assert other.page.locator("#text").input_value() == TEXT
        assert other.table(".flow") == visit.table(".flow")
        other.assert_no_faults()
