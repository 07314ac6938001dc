"""The tabs Training and Compare: curves that grow, checkpoints and their differences equal the files and the API."""

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from playwright.sync_api import Browser, Locator, Route

from browser import Visit, load_sentences, open_page, parse_number, parse_numbers, save_file, wait_until
from serving import RunningServer
from sites import TEXT, Runs, copy_run, serve_runs, softmax

# Training


def test_a_new_line_of_metrics_is_drawn_within_two_seconds(runs: Runs, chromium: Browser) -> None:
    run = copy_run(runs.letters, "growing")
    log = run.folder / "metrics.jsonl"
    with serve_runs({"growing": run}) as site, open_page(chromium, site.url) as visit:
        page = visit.open_tab("training").page
        page.locator(".curve.loss canvas").first.wait_for()
        last = json.loads(log.read_text().splitlines()[-1])
        curve = page.locator(".curve.loss")
        assert parse_number(visit.table(curve)[-1][0]) == last["step"]
        drawn = curve.locator("canvas").first.evaluate("each => each.toDataURL()")
        delays = []
        for extra in range(1, 6):  # on a busy machine, one of five in time is enough
            step = last["step"] + extra
            with log.open("a") as file:
                file.write(
                    json.dumps(last | {"step": step, "loss": 2 + extra / 8, "seconds": last["seconds"] + extra}) + "\n"
                )
            delays.append(wait_until(lambda step=step: parse_number(visit.table(curve)[-1][0]) == step, page))  # type: ignore[misc]
            assert parse_number(visit.table(curve)[-1][1]) == pytest.approx(2 + extra / 8, abs=1e-4)
            if delays[-1] < 2:
                break
        assert min(delays) < 2, delays
        assert curve.locator("canvas").first.evaluate("each => each.toDataURL()") != drawn
        # A skipped step has no loss. The tile keeps the loss before, and counts what was skipped.
        tile = page.locator(".tile").first
        assert "skipped steps" not in (tile.text_content() or "")
        skipped = last | {"step": step + 1, "loss": None, "grad_norm": None, "skipped_steps": 3}
        with log.open("a") as file:
            file.write(json.dumps(skipped) + "\n")
        wait_until(lambda: "skipped steps3" in (tile.text_content() or ""), page)
        assert f"{2 + extra / 8:.4f}" in (tile.text_content() or "")
        visit.assert_no_faults()


def test_the_tab_says_that_it_loads_the_runs_until_they_are_drawn(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route(re.compile("/runs$"), lambda route: route.continue_() if held else held.append(route))
    page = visit.open_tab("training").page
    note = page.get_by_text(load_sentences("en")["train.loading"])
    note.wait_for()
    wait_until(lambda: bool(held), page)
    held[0].continue_()
    page.locator(".curve.loss canvas").first.wait_for()
    assert note.is_hidden()


def test_the_curves_of_several_runs_equal_their_metrics_files(visit: Visit, runs: Runs) -> None:
    page = visit.open_tab("training", "letters").page
    page.locator(".curve.loss canvas").first.wait_for()
    for box in page.locator("#panel-training fieldset input").all():
        box.check()
    names = {"letters": runs.letters, "bytes": runs.bytes}
    keys = page.locator(".curve.loss .line-legend li")
    wait_until(lambda: all(any(name in each for each in keys.all_text_contents()) for name in names), page)
    # The runs have different tokenizers, so at first their losses are in bits per byte.
    assert page.locator("#train-unit").input_value() == "bits"
    header = page.locator(".curve.loss thead th")
    rows = visit.table(".curve.loss")
    for name, run in names.items():
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        column = header.all_text_contents().index(f"{name}: validation")
        shown = [parse_number(row[column]) for row in rows if row[column] != "–"]
        assert shown == pytest.approx([line["bits_per_byte"] for line in lines if "val_loss" in line], rel=1e-4)
    page.locator("#train-unit").select_option("nats")
    for curve, field in (
        ("loss", "loss"),
        ("learning_rate", "learning_rate"),
        ("grad_norm", "grad_norm"),
        ("tokens_per_second", "tokens_per_second"),
    ):
        rows = visit.table(f".curve.{curve}")
        header = page.locator(f".curve.{curve} thead th").all_text_contents()
        for name, run in names.items():
            lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
            column = next(i for i, each in enumerate(header) if name in each)
            assert [parse_number(row[0]) for row in rows] == [line["step"] for line in lines]
            assert [parse_number(row[column]) for row in rows] == pytest.approx(
                [line[field] for line in lines], rel=1e-4
            )
    strokes = keys.locator("line").evaluate_all("all => all.map((each) => each.getAttribute('stroke-dasharray'))")
    assert len(set(strokes)) > 1  # the lines differ in more than color

    for tile, name in zip(page.locator(".tile").all_text_contents(), names, strict=True):
        last = json.loads((names[name].folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert all(each in tile for each in (name, f"{last['loss']:.4f}", f"{last['val_loss']:.4f}", "finished")), tile

    # The slider selects the first samples.
    slider = page.locator("#sample-step")
    slider.focus()
    slider.press("Home")
    for name, run in names.items():
        sample = json.loads((run.folder / "samples.jsonl").read_text().splitlines()[0])
        shown = page.locator(".samples pre").nth(list(names).index(name))
        assert shown.text_content() == sample["text"]
    slider.press("End")
    sample = json.loads((runs.letters.folder / "samples.jsonl").read_text().splitlines()[-1])
    assert page.locator(".samples pre").first.text_content() == sample["text"]


def test_attention_of_earlier_steps_is_requested_only_at_a_click(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("training").page
    page.locator(".curve.loss canvas").first.wait_for()
    before = len(visit.requests_to("/lens/attention"))
    page.locator("#history-text").fill(TEXT)
    assert len(visit.requests_to("/lens/attention")) == before
    page.locator(".history button.main").click()
    steps = list(site.models["letters"].steps)
    slider = page.locator("#history-step")
    wait_until(lambda: slider.get_attribute("max") == str(len(steps) - 1), page)
    slider.focus()
    slider.press("Home")
    for step in steps:
        assert slider.get_attribute("aria-valuetext") == str(step)
        weights = site.view("attention", text=TEXT, step=step, layer=0, head=0)["weights"]
        for row, expected in zip(visit.table(".history .matrix"), weights, strict=True):
            assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        slider.press("ArrowRight")


def test_the_default_word_of_the_form_is_made_of_letters(chromium: Browser, runs: Runs) -> None:
    with serve_runs({"letters": runs.letters}) as site, open_page(chromium, site.url) as visit:
        page = visit.open_tab("training", "letters", "€ 12, the cat").page
        assert page.locator("#history-word").input_value() == "t"  # the tokens are characters
        visit.assert_no_faults()


# Compare


def test_a_checkpoint_compared_with_itself_differs_by_zero(visit: Visit) -> None:
    page = visit.open_tab("compare").page
    for side in "ab":
        page.locator(f"#compare-{side}-model").select_option("letters")
        page.locator(f"#compare-{side}-step").select_option(index=0)
    page.locator("#compare-text").fill(TEXT)
    page.locator("#panel-compare button.main").click()
    page.locator("#panel-compare .zero:visible").wait_for()
    visit.settle()
    panel = page.locator("#panel-compare")
    differences = panel.locator("section table.plain tbody tr td:last-child").all_text_contents()
    for card in panel.locator("section.card:has(details.table)").all():
        for details in card.locator("details.table").all():
            details.evaluate("each => (each.open = true)")
    tables = panel.locator("details.table").evaluate_all("""all => all.map((each) => [
        [...each.querySelectorAll("thead th")].map((cell) => cell.textContent),
        [...each.querySelectorAll("tbody tr")].map((row) => [...row.children].map((cell) => cell.textContent))])""")
    assert len(tables) >= 5
    for header, rows in tables:
        if header[-1] == "Second − first":
            differences += [row[-1] for row in rows]
    pictures = panel.locator(".three-columns .matrix").all()
    differences += [cell for row in visit.table(pictures[2]) for cell in row[1:] if cell]
    assert len(differences) > 100
    assert {parse_number(each) for each in differences} == {0}
    assert visit.table(pictures[0]) == visit.table(pictures[1])
    assert "0.0000" in (panel.locator(".total").first.text_content() or "")


def test_the_differences_of_two_checkpoints_equal_the_api(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("compare").page
    page.locator("#panel-compare .three-columns canvas").first.wait_for()  # it is complete on opening
    first = min(site.models["letters"].steps)
    page.locator("#compare-a-step").select_option(str(first))
    page.locator("#compare-b-step").select_option(index=0)
    page.locator("#compare-text").fill(TEXT)
    page.locator("#panel-compare button.main").click()
    page.locator("#panel-compare .three-columns canvas").nth(2).wait_for()
    visit.settle()
    one, two = (site.view("surprisal", text=TEXT, **step) for step in ({"step": first}, {}))
    cells = page.locator("#panel-compare table.plain tbody tr").first.locator("td").all_text_contents()
    assert parse_numbers(cells) == pytest.approx([one["loss"], two["loss"], two["loss"] - one["loss"]], abs=6e-5)
    rows = visit.table("#panel-compare .lines")
    for row, a, b in zip(rows, one["surprisal"][1:], two["surprisal"][1:], strict=True):
        bits = [a / math.log(2), b / math.log(2), (b - a) / math.log(2)]
        assert parse_numbers(row[1:]) == pytest.approx(bits, rel=1e-4, abs=1e-5)
    weights = [site.view("attention", text=TEXT, layer=0, head=0, **step)["weights"] for step in ({"step": first}, {})]
    rows = visit.table(page.locator("#panel-compare .three-columns .matrix").nth(2))
    for row, a, b in zip(rows, *weights, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx([y - x for x, y in zip(a, b, strict=True)], rel=1e-4, abs=1e-6)
    p, q = (softmax(site.view("next_token", text=TEXT, **step)["logits"]) for step in ({"step": first}, {}))
    expected = [sum(a * math.log(a / b) for a, b in zip(*each, strict=True)) for each in ((p, q), (q, p))]
    shown = re.findall(r"\d\.\d{4}", page.locator("#panel-compare .total").first.text_content() or "")
    assert [float(each) for each in shown] == pytest.approx(expected, abs=6e-5)


def test_compare_is_complete_on_opening(visit: Visit) -> None:
    """Nobody has pressed a button. The table, the tokens, the bars, the three pictures and the curves are there."""
    page = visit.open_tab("compare", "letters", TEXT).page
    page.locator("#panel-compare .three-columns canvas").nth(2).wait_for()
    visit.settle()
    panel = page.locator("#panel-compare")
    assert page.locator("#compare-text").input_value() == TEXT
    assert re.search(r"less surprise per byte|expect this text equally", panel.locator(".verdict").inner_text())
    assert panel.locator("table.plain tbody tr").count() == 3
    assert panel.locator(".running .token").all_text_contents() == list(TEXT)
    assert panel.locator(".lines canvas").is_visible()
    assert panel.locator(".three-columns .body canvas:visible").count() == 3
    bars = panel.locator(".pairs")
    assert bars.nth(0).locator("li").count() >= 8  # the most likely tokens
    assert bars.nth(1).locator("li").count() == 3  # the residual stream: before the first of two layers and after each


@pytest.mark.parametrize("width", [1280, 390])
def test_compare_prints_every_token_or_says_that_it_does_not(visit: Visit, width: int) -> None:
    page = visit.open_tab("compare", "letters").page
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('main details.fold').forEach((each) => (each.open = true))")
    notes = []
    for length in (12, 24, 28, 30, 64):
        text = (TEXT * 3)[:length]
        page.locator("#compare-text").fill(text)
        page.locator("#panel-compare button.main").click()
        visit.settle()
        notes.append(has_name_note(visit, page.locator("#panel-compare .three-columns figure").first, text))
    assert {*notes} == {True, False}


def test_a_matrix_with_room_for_the_names_of_its_columns_only_says_that(visit: Visit) -> None:
    page = visit.open_tab("training", "letters").page
    page.locator(".history button.main").click()
    notes = []
    for text in (TEXT, (TEXT * 3)[:64]):
        page.locator("#history-text").fill(text)
        page.locator("#history-text").press("Tab")
        page.locator(f".history .matrix [aria-label*='{len(text)} rows']").wait_for()
        for width in (860, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            visit.settle()
            notes.append(has_name_note(visit, page.locator(".history .matrix").first, text))
    assert {*notes} == {True, False}


def has_name_note(visit: Visit, figure: Locator, text: str) -> bool:
    """Whether the figure says that names are left out, which it must say exactly if they are."""
    labels = ["␣" if letter == " " else letter for letter in text]
    elements = ET.fromstring(save_file(visit, figure.locator(".save button").filter(has_text="SVG"))).iter()
    printed = [each.text for each in elements if each.tag.endswith("}text") and each.text in labels]
    has_note = "There is room for every" in figure.locator(".foot").inner_text()
    assert has_note == (len(printed) < 2 * len(labels))  # the names of rows and columns
    return has_note
