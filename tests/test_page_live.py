"""The page's live tabs: the playground writes, training grows, checkpoints are compared, in the API's own numbers."""

import json
import math
import re

import pytest
from playwright.sync_api import Browser, Locator

from browser import WRITTEN, Visit, numbers, numeral, until, visiting, write, wrote
from serving import Running
from sites import Runs, chances, copied, ids_of, look, served

TEXT = "the cat sat on the mat"


# Playground


def bars(visit: Visit) -> dict[int, float]:
    """The chances on screen by token, and under -1 that of all others together."""
    found = visit.page.locator(".odds .ladder > li:visible").evaluate_all(
        """all => all.map((each) =>
            [each.dataset.id ?? -1, each.dataset.chance, each.querySelector(".share").textContent])"""
    )
    for _, chance, text in found:  # what is written there is what it is
        assert text.startswith("<") or float(text.strip("%")) == pytest.approx(100 * float(chance), abs=0.051)
    return {int(id): float(chance) for id, chance, _ in found}


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


def test_the_sliders_bend_the_same_logits_without_a_request(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    write(visit, "the cat", length=6)
    page.locator(f"{WRITTEN} .token").nth(7).click()
    visit.settle()
    own = chances(look(site, "next_token", text=ids_of(site, "the cat"))["logits"])
    page.locator(".bend button").click()  # as the model has it: temperature 1, all tokens
    before = len(visit.asked)
    for id, chance in bars(visit).items():
        assert chance == pytest.approx(own[id], abs=1e-5) if id >= 0 else chance > 0
    for name in ("temperature", "topk", "topp"):
        for share in (0.9, 0.5, 0.2):
            drag(page.locator(f"#bend-{name}"), share)
            assert sum(bars(visit).values()) == pytest.approx(1, abs=1e-9)
    page.locator(".bend button").click()
    for press in ("Home", "ArrowRight", "ArrowRight"):
        page.locator("#bend-topk").press(press)
        k = int(page.locator("#bend-topk").get_attribute("aria-valuetext") or 0)
        shown = bars(visit)
        assert len(shown) == k
        best = sorted(range(len(own)), key=lambda id: -own[id])[:k]
        assert shown == pytest.approx({id: own[id] / sum(own[each] for each in best) for id in best}, abs=1e-5)
    page.locator("#bend-topk").press("Home")
    assert list(bars(visit).values()) == [1]
    page.locator("#bend-topk").press("End")
    page.locator("#bend-temperature").press("Home")  # 0: always the likeliest
    assert list(bars(visit).values()) == [1]
    page.wait_for_timeout(300)  # as long as anything on this page waits before it asks
    assert len(visit.asked) == before


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_a_branch_keeps_the_ids_before_it_and_takes_the_chosen_one(visit: Visit, site: Running, model: str) -> None:
    page = visit.go("playground", model).page
    page.locator("#bend-temperature").press("Home")  # always the likeliest, so that it can be asked for again
    write(visit, "the cat sat", length=20)
    text = page.locator(WRITTEN)
    first = text.text_content()
    start = ids_of(site, "the cat sat", model)
    same = site.post("/v1/completions", model=model, prompt=start, max_tokens=20, temperature=0, return_token_ids=True)
    ids = start + same.json["choices"][0]["token_ids"]
    assert visit.sent("/v1/completions")[0].post_data_json["prompt"] == start
    page.locator(".bend button").click()
    spans = page.locator(f"{WRITTEN} .token").all()
    place, span = next(
        (place, span) for span in spans if (place := int(str(span.get_attribute("title")).split()[0])) >= 14
    )
    span.click()
    visit.settle()
    other = page.locator(".ladder li:not(.here, .others) button").first
    chosen = int(other.locator("..").get_attribute("data-id") or -1)
    other.click()
    wrote(visit)
    branch = visit.sent("/v1/completions")[1].post_data_json["prompt"]
    assert branch == [*ids[:place], chosen]
    assert chosen != ids[place]
    begun = site.post("/detokenize", model=model, tokens=branch).json["prompt"]
    assert (text.text_content() or "").startswith(begun.rstrip("\ufffd"))

    # The tree stays: both are in it, and the first one is as it was.
    items = page.get_by_role("treeitem")
    assert [each.get_attribute("aria-level") for each in items.all()] in (["1", "2", "3"], ["1", "2", "2"])
    page.locator("#branch-2-name").click()
    visit.settle()
    assert text.text_content() == first
    assert len(visit.sent("/v1/completions")) == 2


def test_the_lenss_last_row_is_the_bars_and_the_contributions_sum_to_the_logit(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    write(visit, "the cat", length=6)
    page.locator(f"{WRITTEN} .token").nth(9).click()
    visit.settle()
    page.locator(".bend button").click()
    text = page.locator(WRITTEN).text_content() or ""
    ids = ids_of(site, text)[:9]
    seen = look(site, "logit_lens", text=ids, positions=[8], top=5)
    stages = page.locator(".layers tbody tr")
    rows = stages.evaluate_all("""all => all.map((row) => [...row.querySelectorAll(".guess")].map((each) =>
        [each.querySelector("bdi").textContent, +each.dataset.share, each.querySelector("small").textContent]))""")
    for row, layer, shares in zip(rows, seen["ids"], seen["probabilities"], strict=True):
        assert [each[0] for each in row] == [seen["vocabulary"][str(id)] for id in layer[0]]
        assert [each[1] for each in row] == pytest.approx(shares[0], rel=1e-5)
    ladder = page.locator(".ladder > li:visible").evaluate_all("""all => all.map((each) =>
        [each.querySelector("bdi")?.textContent, each.querySelector(".share").textContent])""")
    assert [[each[0], each[2]] for each in rows[-1]] == ladder[:5]

    # Who spoke for it: all parts together are the logit.
    token = page.locator("#parts-token option").first.text_content() or ""
    logits = look(site, "next_token", text=ids)["logits"]
    assert token.startswith(seen["vocabulary"][str(seen["ids"][-1][0][0])])
    page.locator("#parts-token").select_option(index=0)
    visit.settle()
    parts = [numeral(row[1]) for row in visit.table("#panel-playground .parts")]
    assert sum(parts) == pytest.approx(max(logits), abs=5e-4 * len(parts))
    assert numeral(page.locator(".parts .total").text_content() or "") == pytest.approx(max(logits), abs=1e-3)


def test_surprisal_is_the_models_own_by_bits_and_by_rank(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "letters").page
    page.locator("#score-text").fill(TEXT)
    page.locator(".surprisal button[type=submit]").click()
    page.locator(".surprisal .token").first.wait_for()
    seen = look(site, "surprisal", text=TEXT)
    rows = visit.table(".surprisal")
    bits = [each / math.log(2) for each in seen["surprisal"][1:]]
    assert [numeral(row[2]) for row in rows] == pytest.approx(bits, abs=5.1e-3)
    assert [int(row[4]) for row in rows] == seen["rank"][1:]
    total = page.locator(".surprisal .sum").text_content() or ""
    expected = [seen["loss"] / math.log(2), seen["loss"], seen["perplexity"], seen["bits_per_byte"]]
    assert [numeral(each) for each in re.findall(r"\d[\d,]*\.\d+", total)] == pytest.approx(expected, rel=2e-3)
    # The legend counts each height of bar, and the heights differ by more than their colour.
    for name, edges, values in (
        ("bits", [1, 2, 4, 7, 11], bits),
        ("rank", [1.5, 3.5, 10.5, 100.5, 1000.5], seen["rank"][1:]),
    ):
        page.locator(f".surprisal input[value={name}]").check()
        levels = [sum(value >= edge for edge in edges) for value in values]
        counted = page.locator(".surprisal .steps small").all_text_contents()
        assert counted == [f"× {levels.count(level)}" for level in range(6)]
        classes = page.locator(".surprisal .token.surprise").evaluate_all("all => all.map((each) => each.className)")
        assert [int(re.search(r"level-(\d)", each)[1]) for each in classes] == levels  # type: ignore[index]
    heights = page.locator(".surprisal .steps .surprise").evaluate_all(
        "all => all.map((each) => getComputedStyle(each).boxShadow.match(/-?[\\d.]+px/g)?.[1] ?? '0px')"
    )
    assert len(set(heights)) == 6


def test_stop_ends_the_writing_and_frees_the_slot(visit: Visit, site: Running) -> None:
    page = visit.go("playground", "slow").page
    page.locator("#length").fill("2000")
    page.locator("#panel-playground button[type=submit]").first.click()
    until(lambda: page.locator("#panel-playground .fresh").count() > 3, page)
    stop = page.get_by_role("button", name="Stop", exact=True)
    assert not site.idle()
    stop.click()
    until(site.idle, page)
    until(lambda: site.guard.running == 0, page)
    assert stop.is_disabled()
    length = len(page.locator(WRITTEN).text_content() or "")
    page.locator("#panel-playground .odds:visible").wait_for()
    visit.settle()
    assert abs(len(page.locator(WRITTEN).text_content() or "") - length) < 40
    assert "Stopped" in (page.locator("#panel-playground form").first.text_content() or "")


# Training


def test_a_line_that_is_written_down_is_on_the_curve_within_two_seconds(runs: Runs, chromium: Browser) -> None:
    run = copied(runs.letters, "growing")
    log = run.folder / "metrics.jsonl"
    with served({"growing": run}) as site, visiting(chromium, site.url) as visit:
        page = visit.go("training").page
        page.locator(".curve.loss canvas").first.wait_for()
        last = json.loads(log.read_text().splitlines()[-1])
        curve = page.locator(".curve.loss")
        assert numeral(visit.table(curve)[-1][0]) == last["step"]
        drawn = curve.locator("canvas").first.evaluate("each => each.toDataURL()")
        took = []
        for more in range(1, 6):  # whatever else this machine does, one of them is in time
            step = last["step"] + more
            with log.open("a") as file:
                file.write(
                    json.dumps(last | {"step": step, "loss": 2 + more / 8, "seconds": last["seconds"] + more}) + "\n"
                )
            took.append(until(lambda step=step: numeral(visit.table(curve)[-1][0]) == step, page))  # type: ignore[misc]
            assert numeral(visit.table(curve)[-1][1]) == pytest.approx(2 + more / 8, abs=1e-4)
            if took[-1] < 2:
                break
        assert min(took) < 2, took
        assert curve.locator("canvas").first.evaluate("each => each.toDataURL()") != drawn
        visit.calm()


def test_several_runs_are_compared_and_every_number_is_in_their_files(visit: Visit, runs: Runs) -> None:
    page = visit.go("training", "letters").page
    page.locator(".curve.loss canvas").first.wait_for()
    for box in page.locator("#panel-training fieldset input").all():
        box.check()
    names = {"letters": runs.letters, "bytes": runs.bytes}
    keys = page.locator(".curve.loss .keys li")
    until(lambda: all(any(name in each for each in keys.all_text_contents()) for name in names), page)
    for curve, field in (("loss", "loss"), ("learning_rate", "learning_rate"), ("grad_norm", "grad_norm"),
                         ("tokens_per_second", "tokens_per_second")):  # fmt: skip
        rows = visit.table(f".curve.{curve}")
        header = page.locator(f".curve.{curve} thead th").all_text_contents()
        for name, run in names.items():
            lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
            column = next(i for i, each in enumerate(header) if name in each)
            assert [numeral(row[0]) for row in rows] == [line["step"] for line in lines]
            assert [numeral(row[column]) for row in rows] == pytest.approx([line[field] for line in lines], rel=1e-4)
    strokes = keys.locator("line").evaluate_all("all => all.map((each) => each.getAttribute('stroke-dasharray'))")
    assert len(set(strokes)) > 1  # they differ by more than their colour

    for tile, name in zip(page.locator(".tile").all_text_contents(), names, strict=True):
        last = json.loads((names[name].folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert all(each in tile for each in (name, f"{last['loss']:.4f}", f"{last['val_loss']:.4f}", "finished")), tile

    # What they wrote along the way: the scrubber goes back to the first.
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


def test_a_sentence_is_watched_along_training_only_when_asked(visit: Visit, site: Running) -> None:
    page = visit.go("training").page
    page.locator(".curve.loss canvas").first.wait_for()
    before = len(visit.sent("/lens/attention"))
    page.locator("#probe-text").fill(TEXT)
    assert len(visit.sent("/lens/attention")) == before
    page.locator(".probe button.main").click()
    steps = list(site.models["letters"].steps)
    slider = page.locator("#probe-step")
    until(lambda: slider.get_attribute("max") == str(len(steps) - 1), page)
    slider.focus()
    slider.press("Home")
    for step in steps:
        assert slider.get_attribute("aria-valuetext") == str(step)
        weights = look(site, "attention", text=TEXT, step=step, layer=0, head=0)["weights"]
        for row, expected in zip(visit.table(".probe .matrix"), weights, strict=True):
            assert numbers(row[1:]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        slider.press("ArrowRight")


# Compare


def test_a_checkpoint_beside_itself_differs_in_nothing(visit: Visit) -> None:
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
    pictures = panel.locator(".three .matrix").all()
    differences += [cell for row in visit.table(pictures[2]) for cell in row[1:] if cell]
    assert len(differences) > 100
    assert {numeral(each) for each in differences} == {0}
    assert visit.table(pictures[0]) == visit.table(pictures[1])
    assert "0.0000" in (panel.locator(".total").first.text_content() or "")


def test_two_checkpoints_differ_as_the_api_says(visit: Visit, site: Running) -> None:
    page = visit.go("compare").page
    first = min(site.models["letters"].steps)
    page.locator("#compare-a-step").select_option(str(first))
    page.locator("#compare-b-step").select_option(index=0)
    page.locator("#compare-text").fill(TEXT)
    page.locator("#panel-compare button.main").click()
    page.locator("#panel-compare .three canvas").nth(2).wait_for()
    visit.settle()
    one, two = (look(site, "surprisal", text=TEXT, **step) for step in ({"step": first}, {}))
    cells = page.locator("#panel-compare table.plain tbody tr").first.locator("td").all_text_contents()
    assert numbers(cells) == pytest.approx([one["loss"], two["loss"], two["loss"] - one["loss"]], abs=6e-5)
    rows = visit.table("#panel-compare .lines")
    for row, a, b in zip(rows, one["surprisal"][1:], two["surprisal"][1:], strict=True):
        bits = [a / math.log(2), b / math.log(2), (b - a) / math.log(2)]
        assert numbers(row[1:]) == pytest.approx(bits, rel=1e-4, abs=1e-5)
    weights = [look(site, "attention", text=TEXT, layer=0, head=0, **step)["weights"] for step in ({"step": first}, {})]
    for row, a, b in zip(visit.table(page.locator("#panel-compare .three .matrix").nth(2)), *weights, strict=True):
        assert numbers(row[1:]) == pytest.approx([y - x for x, y in zip(a, b, strict=True)], rel=1e-4, abs=1e-6)
    p, q = (chances(look(site, "next_token", text=TEXT, **step)["logits"]) for step in ({"step": first}, {}))
    expected = [sum(a * math.log(a / b) for a, b in zip(*each, strict=True)) for each in ((p, q), (q, p))]
    shown = re.findall(r"\d\.\d{4}", page.locator("#panel-compare .total").first.text_content() or "")
    assert [float(each) for each in shown] == pytest.approx(expected, abs=6e-5)
