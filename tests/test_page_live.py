"""Playground, Training and Compare: generated text, growing curves and comparisons equal the numbers of the API."""

import json
import math
import re

import pytest
from playwright.sync_api import Browser, Locator

from browser import (
    PLAYGROUND_TEXT,
    Visit,
    generate_text,
    open_page,
    parse_number,
    parse_numbers,
    wait_for_text,
    wait_until,
)
from serving import Running
from sites import Runs, copy_run, get_view, serve_runs, softmax, token_ids

TEXT = "the cat sat on the mat"


# Playground


def bar_probabilities(visit: Visit) -> dict[int, float]:
    """The probabilities on screen by token id; -1 is all other tokens together."""
    bars = visit.page.locator(".next-token .token-bars > li:visible").evaluate_all(
        """all => all.map((each) =>
            [each.dataset.id ?? -1, each.dataset.probability, each.querySelector(".share").textContent])"""
    )
    for _, probability, text in bars:
        assert text.startswith("<") or float(text.strip("%")) == pytest.approx(100 * float(probability), abs=0.051)
    return {int(id): float(probability) for id, probability, _ in bars}


def drag(slider: Locator, share: float) -> None:
    """Drag a slider's knob to a share of its length."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    mouse, y = slider.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + box["width"] / 2, y)
    mouse.down()
    for step in range(11):
        mouse.move(box["x"] + 8 + (box["width"] - 16) * (0.5 + (share - 0.5) * step / 10), y)
    mouse.up()


def test_the_sampling_sliders_reshape_the_logits_without_a_request(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    generate_text(visit, "the cat", length=6)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(7).click()
    visit.settle()
    own = softmax(get_view(site, "next_token", text=token_ids(site, "the cat"))["logits"])
    page.locator(".sampling button").click()  # temperature 1, all tokens
    before = len(visit.requests)
    for id, probability in bar_probabilities(visit).items():
        assert probability == pytest.approx(own[id], abs=1e-5) if id >= 0 else probability > 0
    for name in ("temperature", "topk", "topp"):
        for share in (0.9, 0.5, 0.2):
            drag(page.locator(f"#sampling-{name}"), share)
            assert sum(bar_probabilities(visit).values()) == pytest.approx(1, abs=1e-9)
    page.locator(".sampling button").click()
    for press in ("Home", "ArrowRight", "ArrowRight"):
        page.locator("#sampling-topk").press(press)
        k = int(page.locator("#sampling-topk").get_attribute("aria-valuetext") or 0)
        shown = bar_probabilities(visit)
        assert len(shown) == k
        best = sorted(range(len(own)), key=lambda id: -own[id])[:k]
        assert shown == pytest.approx({id: own[id] / sum(own[each] for each in best) for id in best}, abs=1e-5)
    page.locator("#sampling-topk").press("Home")
    assert list(bar_probabilities(visit).values()) == [1]
    page.locator("#sampling-topk").press("End")
    page.locator("#sampling-temperature").press("Home")  # temperature 0: greedy
    assert list(bar_probabilities(visit).values()) == [1]
    page.wait_for_timeout(300)  # longer than the page delays any request
    assert len(visit.requests) == before


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_a_branch_keeps_the_ids_before_it_and_continues_with_the_chosen_token(
    visit: Visit, site: Running, model: str
) -> None:
    page = visit.go("playground", model).page
    page.locator("#sampling-temperature").press("Home")  # greedy, so that the text can be generated again
    generate_text(visit, "the cat sat", length=20)
    text = page.locator(PLAYGROUND_TEXT)
    first = text.text_content()
    start = token_ids(site, "the cat sat", model)
    completion = site.post(
        "/v1/completions", model=model, prompt=start, max_tokens=20, temperature=0, return_token_ids=True
    )
    ids = start + completion.json["choices"][0]["token_ids"]
    assert visit.requests_to("/v1/completions")[0].post_data_json["prompt"] == start
    page.locator(".sampling button").click()
    spans = page.locator(f"{PLAYGROUND_TEXT} .token").all()
    place, span = next(
        (place, span) for span in spans if (place := int(str(span.get_attribute("title")).split()[0])) >= 14
    )
    span.click()
    visit.settle()
    other = page.locator(".token-bars li:not(.actual, .others) button").first
    chosen = int(other.locator("..").get_attribute("data-id") or -1)
    other.click()
    wait_for_text(visit)
    branch = visit.requests_to("/v1/completions")[1].post_data_json["prompt"]
    assert branch == [*ids[:place], chosen]
    assert chosen != ids[place]
    prefix = site.post("/detokenize", model=model, tokens=branch).json["prompt"]
    assert (text.text_content() or "").startswith(prefix.rstrip("\ufffd"))

    # The tree has both branches, and the first one is unchanged.
    items = page.get_by_role("treeitem")
    assert [each.get_attribute("aria-level") for each in items.all()] in (["1", "2", "3"], ["1", "2", "2"])
    page.locator("#branch-2-name").click()
    visit.settle()
    assert text.text_content() == first
    assert len(visit.requests_to("/v1/completions")) == 2


def test_the_logit_lens_ends_in_the_bars_and_contributions_sum_to_the_logit(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    generate_text(visit, "the cat", length=6)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(9).click()
    visit.settle()
    page.locator(".sampling button").click()
    text = page.locator(PLAYGROUND_TEXT).text_content() or ""
    ids = token_ids(site, text)[:9]
    seen = get_view(site, "logit_lens", text=ids, positions=[8], top=5)
    stages = page.locator(".logit-lens tbody tr")
    rows = stages.evaluate_all("""all => all.map((row) => [...row.querySelectorAll(".guess")].map((each) =>
        [each.querySelector("bdi").textContent, +each.dataset.share, each.querySelector("small").textContent]))""")
    for row, layer, shares in zip(rows, seen["ids"], seen["probabilities"], strict=True):
        assert [each[0] for each in row] == [seen["vocabulary"][str(id)] for id in layer[0]]
        assert [each[1] for each in row] == pytest.approx(shares[0], rel=1e-5)
    ladder = page.locator(".token-bars > li:visible").evaluate_all("""all => all.map((each) =>
        [each.querySelector("bdi")?.textContent, each.querySelector(".share").textContent])""")
    assert [[each[0], each[2]] for each in rows[-1]] == ladder[:5]

    # The contributions of all parts sum to the logit.
    token = page.locator("#contributions-token option").first.text_content() or ""
    logits = get_view(site, "next_token", text=ids)["logits"]
    assert token.startswith(seen["vocabulary"][str(seen["ids"][-1][0][0])])
    page.locator("#contributions-token").select_option(index=0)
    visit.settle()
    parts = [parse_number(row[1]) for row in visit.table("#panel-playground .contributions")]
    assert sum(parts) == pytest.approx(max(logits), abs=5e-4 * len(parts))
    assert parse_number(page.locator(".contributions .total").text_content() or "") == pytest.approx(
        max(logits), abs=1e-3
    )


def test_contributions_to_a_part_of_a_character_are_those_of_its_token_id(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "bytes").page
    generate_text(visit, "القطة", length=4)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(1).click()
    visit.settle()
    ids = token_ids(site, "القطة", "bytes")
    request = visit.requests_to("/lens/contributions")[-1].post_data_json
    assert (request["text"], request["token"]) == (ids[:2], ids[2])  # a byte of the second letter
    seen = get_view(site, "contributions", "bytes", text=ids[:2], position=1, token=ids[2])
    parts = [parse_number(row[1]) for row in visit.table("#panel-playground .contributions")]
    assert parts == pytest.approx(seen["contributions"], abs=5.1e-5)


def test_surprisal_equals_the_api_by_bits_and_by_rank(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    page.locator("#surprisal-text").fill(TEXT)
    page.locator(".surprisal button[type=submit]").click()
    page.locator(".surprisal .token").first.wait_for()
    seen = get_view(site, "surprisal", text=TEXT)
    rows = visit.table(".surprisal")
    bits = [each / math.log(2) for each in seen["surprisal"][1:]]
    assert [parse_number(row[2]) for row in rows] == pytest.approx(bits, abs=5.1e-3)
    assert [int(row[4]) for row in rows] == seen["rank"][1:]
    total = page.locator(".surprisal .sum").text_content() or ""
    expected = [seen["loss"] / math.log(2), seen["loss"], seen["perplexity"], seen["bits_per_byte"]]
    assert [parse_number(each) for each in re.findall(r"\d[\d,]*\.\d+", total)] == pytest.approx(expected, rel=2e-3)
    # The legend counts the bars of each height, and the heights differ by more than their color.
    for name, edges, values in (
        ("bits", [1, 2, 4, 7, 11], bits),
        ("rank", [1.5, 3.5, 10.5, 100.5, 1000.5], seen["rank"][1:]),
    ):
        page.locator(f".surprisal input[value={name}]").check()
        levels = [sum(value >= edge for edge in edges) for value in values]
        counted = page.locator(".surprisal .level-legend small").all_text_contents()
        assert counted == [f"× {levels.count(level)}" for level in range(6)]
        bars = page.locator(".surprisal .token.surprisal-bar")
        classes = bars.evaluate_all("all => all.map((each) => each.className)")
        assert [int(re.search(r"level-(\d)", each)[1]) for each in classes] == levels  # type: ignore[index]
    heights = page.locator(".surprisal .level-legend .surprisal-bar").evaluate_all(
        "all => all.map((each) => getComputedStyle(each).boxShadow.match(/-?[\\d.]+px/g)?.[1] ?? '0px')"
    )
    assert len(set(heights)) == 6


def test_stop_ends_generation_and_frees_the_slot(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "slow").page
    page.locator("#length").fill("2000")
    page.locator("#panel-playground button[type=submit]").first.click()
    wait_until(lambda: page.locator("#panel-playground .new").count() > 3, page)
    stop = page.get_by_role("button", name="Stop", exact=True)
    assert not site.idle()
    stop.click()
    wait_until(site.idle, page)
    wait_until(lambda: site.app.drain.running == 0, page)
    assert stop.is_disabled()
    length = len(page.locator(PLAYGROUND_TEXT).text_content() or "")
    page.locator("#panel-playground .next-token:visible").wait_for()
    visit.settle()
    assert abs(len(page.locator(PLAYGROUND_TEXT).text_content() or "") - length) < 40
    assert "Stopped" in (page.locator("#panel-playground form").first.text_content() or "")


# Training


def test_a_new_line_of_metrics_is_on_the_curve_within_two_seconds(runs: Runs, chromium: Browser) -> None:
    run = copy_run(runs.letters, "growing")
    log = run.folder / "metrics.jsonl"
    with serve_runs({"growing": run}) as site, open_page(chromium, site.url) as visit:
        page = visit.go("training").page
        page.locator(".curve.loss canvas").first.wait_for()
        last = json.loads(log.read_text().splitlines()[-1])
        curve = page.locator(".curve.loss")
        assert parse_number(visit.table(curve)[-1][0]) == last["step"]
        drawn = curve.locator("canvas").first.evaluate("each => each.toDataURL()")
        delays = []
        for more in range(1, 6):  # on a busy machine one of five is in time
            step = last["step"] + more
            with log.open("a") as file:
                file.write(
                    json.dumps(last | {"step": step, "loss": 2 + more / 8, "seconds": last["seconds"] + more}) + "\n"
                )
            delays.append(wait_until(lambda step=step: parse_number(visit.table(curve)[-1][0]) == step, page))  # type: ignore[misc]
            assert parse_number(visit.table(curve)[-1][1]) == pytest.approx(2 + more / 8, abs=1e-4)
            if delays[-1] < 2:
                break
        assert min(delays) < 2, delays
        assert curve.locator("canvas").first.evaluate("each => each.toDataURL()") != drawn
        visit.assert_no_faults()


def test_several_runs_are_plotted_with_the_numbers_of_their_files(visit: Visit, runs: Runs) -> None:
    page = visit.go("training", "letters").page
    page.locator(".curve.loss canvas").first.wait_for()
    for box in page.locator("#panel-training fieldset input").all():
        box.check()
    names = {"letters": runs.letters, "bytes": runs.bytes}
    keys = page.locator(".curve.loss .line-legend li")
    wait_until(lambda: all(any(name in each for each in keys.all_text_contents()) for name in names), page)
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
    assert len(set(strokes)) > 1  # the lines differ by more than their color

    for tile, name in zip(page.locator(".tile").all_text_contents(), names, strict=True):
        last = json.loads((names[name].folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert all(each in tile for each in (name, f"{last['loss']:.4f}", f"{last['val_loss']:.4f}", "finished")), tile

    # The slider goes back to the first samples.
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


def test_checkpoints_are_read_only_when_the_reader_asks(visit: Visit, site: Running) -> None:
    page = visit.go("training").page
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
        weights = get_view(site, "attention", text=TEXT, step=step, layer=0, head=0)["weights"]
        for row, expected in zip(visit.table(".history .matrix"), weights, strict=True):
            assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        slider.press("ArrowRight")


# Compare


def test_a_checkpoint_compared_with_itself_differs_by_zero(visit: Visit) -> None:
    page = visit.go("compare").page
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


def test_the_differences_of_two_checkpoints_equal_the_api(visit: Visit, site: Running) -> None:
    page = visit.go("compare").page
    first = min(site.models["letters"].steps)
    page.locator("#compare-a-step").select_option(str(first))
    page.locator("#compare-b-step").select_option(index=0)
    page.locator("#compare-text").fill(TEXT)
    page.locator("#panel-compare button.main").click()
    page.locator("#panel-compare .three-columns canvas").nth(2).wait_for()
    visit.settle()
    one, two = (get_view(site, "surprisal", text=TEXT, **step) for step in ({"step": first}, {}))
    cells = page.locator("#panel-compare table.plain tbody tr").first.locator("td").all_text_contents()
    assert parse_numbers(cells) == pytest.approx([one["loss"], two["loss"], two["loss"] - one["loss"]], abs=6e-5)
    rows = visit.table("#panel-compare .lines")
    for row, a, b in zip(rows, one["surprisal"][1:], two["surprisal"][1:], strict=True):
        bits = [a / math.log(2), b / math.log(2), (b - a) / math.log(2)]
        assert parse_numbers(row[1:]) == pytest.approx(bits, rel=1e-4, abs=1e-5)
    weights = [
        get_view(site, "attention", text=TEXT, layer=0, head=0, **step)["weights"] for step in ({"step": first}, {})
    ]
    rows = visit.table(page.locator("#panel-compare .three-columns .matrix").nth(2))
    for row, a, b in zip(rows, *weights, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx([y - x for x, y in zip(a, b, strict=True)], rel=1e-4, abs=1e-6)
    p, q = (softmax(get_view(site, "next_token", text=TEXT, **step)["logits"]) for step in ({"step": first}, {}))
    expected = [sum(a * math.log(a / b) for a, b in zip(*each, strict=True)) for each in ((p, q), (q, p))]
    shown = re.findall(r"\d\.\d{4}", page.locator("#panel-compare .total").first.text_content() or "")
    assert [float(each) for each in shown] == pytest.approx(expected, abs=6e-5)
