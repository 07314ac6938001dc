"""The tabs Walk and Attention show the numbers that the API returns."""

import re

import pytest
from playwright.sync_api import Browser

from browser import Visit, open_page, parse_number, parse_numbers, wait_until
from serving import RunningServer
from sites import TEXT, softmax, token_ids

MATRIX = "#panel-attention .matrix"


# Walk


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 1)])
def test_every_stage_shows_the_shape_and_values_of_the_api(
    visit: Visit, site: RunningServer, layer: int, head: int
) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    for name, value in (("layer", layer), ("head", head)):
        page.locator(f"#walk-{name}").select_option(str(value))
        visit.settle()
    stages = site.view("shapes", text=TEXT, layer=layer, head=head)["stages"]
    for i, stage in enumerate(stages):
        shape = page.locator(".facts .shape")
        assert shape.text_content().endswith(f"= {stage['shape']}"), stage["name"]  # type: ignore[union-attr]
        facts = page.locator(".facts dd").all_text_contents()
        if stage["parameters"]:
            assert parse_number(facts[1]) == stage["parameters"]
        rows = visit.table("#panel-walk .matrix")
        for r, (row, values) in enumerate(zip(rows, stage["values"], strict=True)):
            if stage["axes"].endswith("T T"):  # the future is hidden
                values = values[: r + 1]
                if "softmax" in stage["name"]:
                    assert row.pop() == "1.000"
            assert parse_numbers(row[1:]) == pytest.approx(values, rel=1e-5), (stage["name"], r)
        page.locator(".steps button.main").click()
        assert page.locator(".steps .mono").text_content() == f"{i + 2} / {len(stages) + 1}"
    assert page.locator(".steps button.main").is_disabled()
    expected = sorted(softmax(site.view("next_token", text=TEXT)["logits"]), reverse=True)
    shown = parse_numbers([row[1] for row in visit.table("#panel-walk .bars")])
    lengths = page.locator("#panel-walk .bars .fill").evaluate_all("""all => all.map((each) =>
        each.getBoundingClientRect().width / each.parentElement.getBoundingClientRect().width)""")
    assert lengths == pytest.approx(shown, abs=5e-3)  # the track is 0 to 100%
    assert shown == pytest.approx(expected[: len(shown)], rel=1e-5)


def test_walk_shows_the_names_in_the_code_and_the_initialization(visit: Visit) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    card = page.locator("#panel-walk .card")
    assert "block_size 64" in page.locator(".model-size").inner_text()
    sentences = {1: "random once (normal distribution N(0, 0.02)", 2: "sines and cosines", 3: "this model uses 0."}
    for stage, sentence in sentences.items():
        page.locator(".diagram .box").nth(stage).dispatch_event("click")
        assert sentence in card.inner_text()
    axes = ["B = batch_size = 1", f"T = seq_len = {len(TEXT)}", "C = n_embd = 32"]
    assert card.locator(".letters b").all_text_contents() == axes
    page.locator("#walk-layer").select_option("1")
    visit.settle()
    assert page.locator(".diagram .layer-name").text_content() == "Transformer block h.1, one of 2"
    visit.open_tab("positions_and_words")
    assert "began as sines and cosines" in page.locator("[aria-labelledby=wpe-title]").inner_text()


def test_the_sizes_of_gpt2_are_shown_and_the_tied_head_has_no_parameters(visit: Visit) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    page.locator(".steps input[type=checkbox]").check()
    gpt2 = page.locator(".facts.other")
    assert re.findall(r"[\d,]{8,}", gpt2.inner_text()) == ["124,046,592", "124,439,808"]
    page.locator(".diagram .box").nth(16).dispatch_event("click")
    for facts in page.locator(".facts").all():
        assert "it is wte again" in facts.inner_text()
    page.locator(".diagram .box").nth(5).dispatch_event("click")
    aside = page.locator("#panel-walk .aside")
    assert aside.inner_text().startswith("At GPT-2's size: The width is cut into 12 heads of 64")
    page.locator(".steps input[type=checkbox]").uncheck()
    assert aside.inner_text().startswith("The width is cut into 2 heads of 16")


def test_pointing_at_a_cell_shows_its_number_and_formula(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("walk", "letters", TEXT).page
    stages = {each["name"]: each["values"] for each in site.view("shapes", text=TEXT, layer=0, head=0)["stages"]}
    for _ in range(3):  # to x = wte + wpe
        page.locator(".steps button.main").click()
    picture = page.locator("#panel-walk .matrix")
    canvas = picture.locator("canvas").first
    box = canvas.bounding_box()
    assert box
    cells = set()
    for across, down in ((0.4, 0.4), (0.6, 0.7), (0.9, 0.9)):
        canvas.hover(position={"x": across * box["width"], "y": down * box["height"]})
        text = picture.locator(".derivation").text_content() or ""
        r, c = map(int, re.match(r"x\[(\d+), (\d+)\]", text).groups())  # type: ignore[union-attr]
        cells.add((r, c))
        first, second, total = (parse_number(each) for each in re.findall(r"\n= (.*) \+ (.*)\n= (.*)", text)[0])
        expected = [stages[name][r][c] for name in ("wte", "wpe", "x")]
        assert [first, second, total] == pytest.approx(expected, rel=1e-5)
    assert len(cells) == 3


def test_the_cursor_stays_on_one_token_in_all_stages(visit: Visit, site: RunningServer) -> None:
    """It is the last token with letters. At the logits, the column is the most likely next token."""
    page = visit.open_tab("walk", "letters", "the cat, ").page
    cells = []
    for box in page.locator(".diagram .box").all()[:17]:
        box.dispatch_event("click")
        formula = page.locator("#panel-walk .matrix .derivation").text_content() or ""
        cells.append(re.match(r"[^\[]*\[(.*?)\]", formula).group(1))  # type: ignore[union-attr]
    logits = site.view("next_token", text="the cat, ")["logits"]
    id = token_ids(site, "t")[0]
    assert cells[0] == "0, 6"
    assert cells[1] == f"{id}, 3"
    assert {each.split(",")[0] for each in cells[2:]} == {"6"}
    assert cells[16] == f"6, {max(range(len(logits)), key=logits.__getitem__)}"


def test_arrow_keys_and_swipes_change_the_stage(chromium: Browser, site: RunningServer) -> None:
    with open_page(chromium, site.url, has_touch=True, viewport={"width": 400, "height": 800}) as visit:
        page = visit.open_tab("walk", "letters", TEXT).page
        counter = page.locator(".steps .mono")
        page.locator("#tab-walk").focus()
        page.keyboard.press("Tab")
        page.locator(".steps button.main").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert counter.text_content() == "3 / 18"
        visit.choose(language="ar")
        page.locator(".steps button.main").focus()
        page.keyboard.press("ArrowRight")  # backward in a right-to-left language
        assert counter.text_content() == "2 / 18"
        visit.choose(language="en")
        heading = page.locator("#panel-walk h2").bounding_box()
        assert heading
        touch = page.context.new_cdp_session(page)
        y = heading["y"] + 10
        for kind, x in (("touchStart", 300), ("touchMove", 200), ("touchMove", 120), ("touchEnd", None)):
            points = [] if x is None else [{"x": x, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        wait_until(lambda: counter.text_content() == "3 / 18", page)
        visit.assert_no_faults()


# Attention


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_attention_equals_the_api_and_its_rows_sum_to_one(visit: Visit, site: RunningServer, model: str) -> None:
    text = {"letters": TEXT, "bytes": "the بيت 🦉 cat"}[model]
    page = visit.open_tab("attention", model, text).page
    page.locator("#attention-layer").select_option("1")
    page.locator("#attention-head").select_option("1")
    visit.settle()
    view = site.view("attention", model, text=text, layer=1, head=1)
    heads, pattern = page.locator(MATRIX).all()
    rows = visit.table(pattern)
    assert [row.pop() for row in rows] == ["1.000"] * len(view["tokens"])
    for row, weights in zip(rows, view["weights"], strict=True):
        shown = parse_numbers(row[1:])
        assert shown == pytest.approx(weights, rel=1e-5, abs=1e-6)
        assert sum(shown) == pytest.approx(1, abs=5e-4)
    page.locator("#attention-statistic").select_option("entropy")
    entropies = [[each["entropy"] for each in view["heads"] if each["layer"] == layer] for layer in (0, 1)]
    for row, expected in zip(visit.table(heads), entropies, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5)


def test_arrow_keys_reach_the_exact_weight_of_any_two_tokens(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("attention", "letters", TEXT).page
    for name in ("layer", "head"):
        page.locator(f"#attention-{name}").select_option("1")
        visit.settle()
    weights = site.view("attention", text=TEXT, layer=1, head=1)["weights"]
    pattern = page.locator(MATRIX).nth(1)
    stage = pattern.get_by_role("application")
    stage.focus()
    stage.press("Home")
    stage.press("PageUp")
    for _ in range(7):
        stage.press("ArrowDown")
    for t, s in ((7, 1), (7, 2), (7, 3)):
        stage.press("ArrowRight")
        assert parse_number(pattern.locator(".exact").text_content() or "") == pytest.approx(weights[t][s], rel=1e-5)
        assert pattern.locator(".sum").text_content() == "1.000"
    stage.press("End")
    assert pattern.locator(".exact").count() == 0  # for the future there is a sentence and no number
    # The readout of the arcs has the largest weights of the same row.
    shown = page.locator(".arcs .readout b").all_text_contents()
    assert [parse_number(each) for each in shown] == pytest.approx(
        sorted(weights[7], reverse=True)[: len(shown)], abs=5e-4
    )


def test_attention_opens_on_the_most_telling_head_and_names_its_habit(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("attention", "letters", TEXT).page
    view = site.view("attention", text=TEXT)
    most = max(view["heads"], key=lambda head: head["distant"])
    assert (view["layer"], view["head"]) == (most["layer"], most["head"])
    assert [page.locator(f"#attention-{name}").input_value() for name in ("layer", "head")] == [
        str(most["layer"]),
        str(most["head"]),
    ]
    assert page.get_by_text("The page opens on the head").is_visible()
    weights = view["weights"]
    # The chosen token is the one that attends most to a distant token.
    distant = [max(row[1 : t - 1], default=0) if t > 2 else 0 for t, row in enumerate(weights)]
    row = distant.index(max(distant))
    exact = page.locator(MATRIX).nth(1).locator(".exact").text_content() or ""
    assert parse_number(exact) == pytest.approx(max(weights[row]), rel=1e-5)
    page.locator("#attention-head").select_option(str(1 - most["head"]))
    visit.settle()
    assert not page.get_by_text("The page opens on the head").is_visible()
    visit.open_tab("walk")  # the choice holds on every tab
    assert page.locator("#walk-head").input_value() == str(1 - most["head"])


def test_512_tokens_take_one_request_of_less_than_a_megabyte(visit: Visit) -> None:
    page = visit.open_tab("attention", "long").page
    text = ("To be, or not to be: that is the question. " * 12)[:512]
    before = len(visit.requests_to("/lens/attention"))
    with page.expect_response(
        lambda each: "/lens/attention" in each.url and text in (each.request.post_data or "")
    ) as response:
        visit.open_tab("attention", text=text)
    assert len(response.value.body()) < 1_000_000
    assert len(visit.requests_to("/lens/attention")) - before == 1
    pattern = page.locator(MATRIX).nth(1)
    assert len(re.findall("512", pattern.get_by_role("application").get_attribute("aria-label") or "")) == 2
    stage = pattern.get_by_role("application")
    stage.focus()
    stage.press("PageDown")
    stage.press("End")
    weights = response.value.json()["weights"]
    assert parse_number(pattern.locator(".exact").text_content() or "") == pytest.approx(weights[511][511], rel=1e-5)
    assert pattern.locator(".sum").text_content() == "1.000"
    rows = visit.table(pattern)  # the table of a large matrix shows the row at the cursor
    assert sum(parse_numbers([row[1] for row in rows])) == pytest.approx(1, abs=5e-4)
