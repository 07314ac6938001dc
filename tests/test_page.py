"""The page shows the numbers that the model computes: they equal those of the API."""

import math
import re
from itertools import chain

import pytest
from playwright.sync_api import Browser, Route

from browser import PLAYGROUND_TEXT, TABS, Visit, fill_tab, open_page, parse_number, parse_numbers, wait_until
from serving import Running
from sites import get_view, softmax, token_ids

TEXT = "the cat sat on the mat"
MATRIX = "#panel-attention .matrix"


# Walk


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 1)])
def test_every_stage_shows_the_shape_and_numbers_of_the_model(
    visit: Visit, site: Running, layer: int, head: int
) -> None:
    page = visit.go("walk", "letters", TEXT).page
    for name, value in (("layer", layer), ("head", head)):
        page.locator(f"#walk-{name}").select_option(str(value))
        visit.settle()
    stages = get_view(site, "shapes", text=TEXT, layer=layer, head=head)["stages"]
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
    expected = sorted(softmax(get_view(site, "next_token", text=TEXT)["logits"]), reverse=True)
    shown = parse_numbers([row[1] for row in visit.table("#panel-walk .bars")])
    assert shown == pytest.approx(expected[: len(shown)], rel=1e-5)


def test_walk_uses_the_names_of_the_code_and_names_the_initialization(visit: Visit) -> None:
    page = visit.go("walk", "letters", TEXT).page
    card = page.locator("#panel-walk .card")
    assert "block_size 64" in page.locator(".model").inner_text()
    sentences = {1: "random once (normal distribution N(0, 0.02)", 2: "sines and cosines", 3: "this model uses 0."}
    for stage, sentence in sentences.items():
        page.locator(".map .box").nth(stage).dispatch_event("click")
        assert sentence in card.inner_text()
    axes = ["B = batch_size = 1", f"T = seq_len = {len(TEXT)}", "C = n_embd = 32"]
    assert card.locator(".letters b").all_text_contents() == axes
    page.locator("#walk-layer").select_option("1")
    visit.settle()
    assert page.locator(".map .layer-name").text_content() == "Transformer block h.1, one of 2"
    visit.go("positions_and_words")
    assert "began as sines and cosines" in page.locator("[aria-labelledby=wpe-title]").inner_text()


def test_gpt2_sizes_are_complete_and_the_tied_head_has_no_parameters(visit: Visit) -> None:
    page = visit.go("walk", "letters", TEXT).page
    page.locator(".steps input[type=checkbox]").check()
    gpt2 = page.locator(".facts.other")
    assert re.findall(r"[\d,]{8,}", gpt2.inner_text()) == ["124,046,592", "124,439,808"]
    page.locator(".map .box").nth(16).dispatch_event("click")
    for facts in page.locator(".facts").all():
        assert "none of its own: it is wte again" in facts.inner_text()
    page.locator(".map .box").nth(5).dispatch_event("click")
    aside = page.locator("#panel-walk .aside")
    assert aside.inner_text().startswith("At GPT-2's size: The width is cut into 12 heads of 64")
    page.locator(".steps input[type=checkbox]").uncheck()
    assert aside.inner_text().startswith("The width is cut into 2 heads of 16")


def test_pointing_at_a_cell_shows_its_number_and_formula(visit: Visit, site: Running) -> None:
    page = visit.go("walk", "letters", TEXT).page
    stages = {each["name"]: each["values"] for each in get_view(site, "shapes", text=TEXT, layer=0, head=0)["stages"]}
    for _ in range(3):  # to x = wte + wpe
        page.locator(".steps button.main").click()
    picture = page.locator("#panel-walk .matrix")
    canvas = picture.locator("canvas").first
    box = canvas.bounding_box()
    assert box
    cells = set()
    for across, down in ((0.4, 0.4), (0.6, 0.7), (0.9, 0.9)):
        canvas.hover(position={"x": across * box["width"], "y": down * box["height"]})
        text = picture.locator(".origin").text_content() or ""
        r, c = map(int, re.match(r"x\[(\d+), (\d+)\]", text).groups())  # type: ignore[union-attr]
        cells.add((r, c))
        first, second, total = (parse_number(each) for each in re.findall(r"\n= (.*) \+ (.*)\n= (.*)", text)[0])
        expected = [stages[name][r][c] for name in ("wte", "wpe", "x")]
        assert [first, second, total] == pytest.approx(expected, rel=1e-5)
    assert len(cells) == 3


def test_the_cursor_follows_one_token_through_all_stages(visit: Visit, site: Running) -> None:
    """It is the last token with letters; at the logits the cursor is on the most likely next token."""
    page = visit.go("walk", "letters", "the cat, ").page
    cells = []
    for box in page.locator(".map .box").all()[:17]:
        box.dispatch_event("click")
        formula = page.locator("#panel-walk .matrix .origin").text_content() or ""
        cells.append(re.match(r"[^\[]*\[(.*?)\]", formula).group(1))  # type: ignore[union-attr]
    logits = get_view(site, "next_token", text="the cat, ")["logits"]
    id = token_ids(site, "t")[0]
    assert cells[0] == "0, 6"
    assert cells[1] == f"{id}, 3"
    assert {each.split(",")[0] for each in cells[2:]} == {"6"}
    assert cells[16] == f"6, {max(range(len(logits)), key=logits.__getitem__)}"


def test_arrow_keys_and_swipes_change_the_stage(chromium: Browser, site: Running) -> None:
    with open_page(chromium, site.url, has_touch=True, viewport={"width": 400, "height": 800}) as visit:
        page = visit.go("walk", "letters", TEXT).page
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
def test_attention_equals_the_api_and_its_rows_sum_to_one(visit: Visit, site: Running, model: str) -> None:
    text = {"letters": TEXT, "bytes": "the بيت 🦉 cat"}[model]
    page = visit.go("attention", model, text).page
    page.locator("#attention-layer").select_option("1")
    page.locator("#attention-head").select_option("1")
    visit.settle()
    seen = get_view(site, "attention", model, text=text, layer=1, head=1)
    heads, pattern = page.locator(MATRIX).all()
    rows = visit.table(pattern)
    assert [row.pop() for row in rows] == ["1.000"] * len(seen["tokens"])
    for row, weights in zip(rows, seen["weights"], strict=True):
        shown = parse_numbers(row[1:])
        assert shown == pytest.approx(weights, rel=1e-5, abs=1e-6)
        assert sum(shown) == pytest.approx(1, abs=5e-4)
    entropies = [[each["entropy"] for each in seen["heads"] if each["layer"] == layer] for layer in (0, 1)]
    for row, expected in zip(visit.table(heads), entropies, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5)


def test_the_keyboard_reaches_the_exact_share_of_any_two_tokens(visit: Visit, site: Running) -> None:
    page = visit.go("attention", "letters", TEXT).page
    seen = get_view(site, "attention", text=TEXT, layer=0, head=0)
    weights, labels = seen["weights"], [token["label"] for token in seen["tokens"]]
    pattern = page.locator(MATRIX).nth(1)
    # The cursor begins at the last token with letters, and at the token that it attends to most.
    last = max(i for i, label in enumerate(labels) if any(map(str.isalpha, label)))
    assert parse_number(pattern.locator(".exact").text_content() or "") == pytest.approx(max(weights[last]), rel=1e-5)
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
    assert pattern.locator(".exact").count() == 0  # the future has a sentence and no number
    # The readout of the arcs names the same row's largest shares.
    shown = page.locator(".arcs .readout b").all_text_contents()
    assert [parse_number(each) for each in shown] == pytest.approx(
        sorted(weights[7], reverse=True)[: len(shown)], abs=5e-4
    )


def test_512_tokens_take_one_request_of_less_than_a_megabyte(visit: Visit) -> None:
    page = visit.go("attention", "long").page
    text = ("To be, or not to be: that is the question. " * 12)[:512]
    before = len(visit.requests_to("/lens/attention"))
    with page.expect_response(
        lambda each: "/lens/attention" in each.url and text in (each.request.post_data or "")
    ) as response:
        visit.go("attention", text=text)
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


# Texts that a model can't read


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "no character of this text: 🐱 Ω"),
        ("ar", "أي حرف من هذا النص: 🐱 Ω"),
        ("hi", "नहीं जानता: 🐱 Ω"),
        ("fr", "aucun caractère de ce texte"),
        ("de", "kein Zeichen: 🐱 Ω"),
    ],
)
def test_an_unreadable_text_is_reported_below_the_field_until_it_changes(
    visit: Visit, language: str, sentence: str
) -> None:
    """The message is in the reader's language and names letters that the model knows; the old panel is pale."""
    page = visit.go("walk", "letters", TEXT).page
    visit.choose(language=language)
    message = page.locator("#reading-problem")
    for tab in ("walk", "attention"):
        visit.go(tab)
        assert not message.is_visible()
        page.locator("#text").fill("🐱Ω🐱")
        message.wait_for()
        text = re.sub("[\u2068\u2069]", "", message.inner_text())
        assert sentence in text
        assert re.search(r": \w \w", text)  # letters that it knows
        assert page.locator(f"#panel-{tab}.stale").count() == 1
        visit.choose(language="de" if language != "de" else "en")  # the text and the message stay
        assert page.locator("#text").input_value() == "🐱Ω🐱"
        assert message.is_visible()
        visit.choose(language=language)
        page.locator("#text").fill("the cat")
        message.wait_for(state="hidden")
        visit.settle()
        assert page.locator("main .stale").count() == 0
        page.locator("#text").fill(TEXT)


def test_an_empty_text_disables_the_old_panel(visit: Visit) -> None:
    page = visit.go("walk", "letters", TEXT).page
    for tab in ("walk", "attention"):
        visit.go(tab)
        page.locator("#text").fill("")
        page.get_by_text("Write a beginning first. One letter is enough.").wait_for()
        panel = page.locator(f"#panel-{tab}")
        assert panel.evaluate("each => each.inert && getComputedStyle(each).opacity < 0.5")
        page.locator("#text").fill("t")
        page.locator("#reading-problem").wait_for(state="hidden")
        visit.settle()
        assert panel.evaluate("each => !each.inert && getComputedStyle(each).opacity === '1'")


def test_changing_the_model_replaces_an_unreadable_text(visit: Visit) -> None:
    page = visit.go("walk", "bytes", "Ωμέγα").page
    page.locator("#model").select_option("letters")
    visit.settle()
    page.locator("#panel-walk .running").wait_for()
    assert page.locator("#text").input_value() not in ("", "Ωμέγα")


@pytest.mark.parametrize("tab", ["playground", "compare", "training"])
def test_no_tab_requests_an_unreadable_text(visit: Visit, tab: str) -> None:
    page = visit.go(tab, "letters").page
    visit.choose(language="de")
    fields = {"playground": ("prompt", "surprisal-text"), "compare": ("compare-text",), "training": ("history-text",)}[
        tab
    ]
    for field in fields:
        page.locator(f"#{field}").fill("🐱")
        page.locator(f"form:has(#{field}) button.main, form:has(#{field}) button[type=submit]").first.click()
        page.get_by_role("alert").get_by_text("kein Zeichen: 🐱").wait_for()
        page.locator(f"#{field}").fill("the cat")
        page.locator(f"form:has(#{field}) button.main, form:has(#{field}) button[type=submit]").first.click()
        page.get_by_role("alert").wait_for(state="detached")
        visit.settle()


def test_server_errors_are_shown_without_command_line_hints(visit: Visit) -> None:
    page = visit.go("walk", "letters", TEXT).page
    visit.choose(language="ar")
    error = {"message": "there is no such thing", "hint": '--text "The "', "type": "invalid_request_error"}
    page.route("**/lens/shapes", lambda route: route.fulfill(status=400, json={"error": error}))
    page.locator("#walk-head").select_option("1")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "يقول الخادم (بالإنجليزية): there is no such thing" in alert.inner_text()
    assert "--" not in alert.inner_text()
    assert alert.locator("bdi").get_attribute("lang") == "en"
    visit.faults.clear()  # the refusal is intended


# Positions and words


def test_positions_words_and_neighbors_equal_the_api(visit: Visit, site: Running) -> None:
    page = visit.go("positions_and_words", "letters", TEXT).page
    page.locator("#word").fill("t")
    page.locator("#word-at-1").fill("9")
    page.locator("#word-at-1").press("Enter")
    visit.settle()
    seen = get_view(site, "position", word="t", at=[1, 9])
    [piece] = seen["tokens"]
    expected = [piece["wte"], piece["wpe"][0], piece["x"][0], piece["wte"], piece["wpe"][1], piece["x"][1]]
    for row, values in zip(visit.table("[aria-labelledby=position-title]"), expected, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(values, rel=1e-5)
    for row, values in zip(visit.table("[aria-labelledby=wpe-title]"), seen["similarity"], strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(values, rel=1e-5)

    page.locator("#similarity-first").fill("a")
    page.locator("#similarity-second").fill("e")
    page.locator("#similarity-second").press("Enter")
    visit.settle()
    seen = get_view(site, "neighbors", word="a", against="e", top=1)
    rows = visit.table("[aria-labelledby=similarity-title]")
    assert [parse_number(row[0]) for row in rows] == [each["step"] for each in seen["history"]]
    assert [parse_number(row[1]) for row in rows] == pytest.approx(
        [each["against"] for each in seen["history"]], rel=1e-5
    )

    page.locator("#find").fill("c")
    page.locator("#find").press("Enter")
    visit.settle()
    near = get_view(site, "neighbors", word="c", top=12)["neighbors"]
    shown = page.locator(".neighbors button").all_text_contents()
    assert [each.split()[0] for each in shown] == [each["token"]["label"] for each in near]
    assert [parse_number(each.split()[1]) for each in shown] == pytest.approx(
        [each["cosine"] for each in near], abs=5e-3
    )


def test_the_map_shows_the_projection_at_the_chosen_step(visit: Visit, site: Running) -> None:
    page = visit.go("positions_and_words", "letters", TEXT).page
    steps = site.models["letters"].steps
    seen = get_view(site, "projection", step=max(steps), words=[])
    rows = visit.table("[aria-labelledby=projection-title]")
    assert [parse_number(each) for row in rows for each in row[1:]] == pytest.approx(
        [*chain(*seen["points"])], rel=1e-5
    )
    share = round(100 * sum(seen["explained"]))
    assert f"{share}%" in (page.locator("[aria-labelledby=projection-title] .caveat").text_content() or "")
    slider = page.locator("#projection-step")
    slider.focus()
    slider.press("Home")
    visit.settle()
    earlier = get_view(site, "projection", step=min(steps), words=[])["points"]
    shown = [[parse_number(each) for each in row[1:]] for row in visit.table("[aria-labelledby=projection-title]")]
    # Rotation to match the last step keeps each point's distance from the center.
    assert [math.hypot(*each) for each in shown] == pytest.approx([math.hypot(*each) for each in earlier], rel=1e-4)
    assert slider.get_attribute("aria-valuetext") == f"step {min(steps)}"


def test_a_neighbor_that_is_a_part_of_a_character_has_neighbors(visit: Visit, site: Running) -> None:
    """It is requested by its id, which another model does not share."""
    page = visit.go("positions_and_words", "bytes", TEXT).page
    word, part = next(
        (letter, each["token"])
        for letter in "abcdefghijklmnopqrstuvwxyz"
        for each in get_view(site, "neighbors", "bytes", word=letter, top=12)["neighbors"]
        if each["token"]["id"] > 0xBF  # the first byte of a character
    )
    page.locator("#find").fill(word)
    page.locator("#find").press("Enter")
    visit.settle()
    page.locator(".neighbors button", has_text=part["label"]).click()
    visit.settle()
    assert visit.requests_to("/lens/neighbors")[-1].post_data_json["word"] == part["id"]
    near = get_view(site, "neighbors", "bytes", word=part["id"], top=12)["neighbors"]
    shown = page.locator(".neighbors button").all_text_contents()
    assert [each.split()[0] for each in shown] == [each["token"]["label"] for each in near]
    page.locator("#model").select_option("letters")
    visit.settle()
    assert page.locator(".neighbors").count() == 0


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("similarity-second", "katze"),
        ("similarity-second", "Ω"),
        ("find", "Ω"),
        ("word", "Ω"),
        ("word", "donaudampfschifffahrt"),
    ],
)
def test_an_unusable_word_is_reported_in_the_readers_language(visit: Visit, field: str, word: str) -> None:
    """A word of several tokens, or with letters that the tokenizer doesn't know; no request is refused."""
    page = visit.go("positions_and_words", "letters").page
    visit.choose(language="de")
    before = page.locator("#panel-positions_and_words").inner_text()
    page.locator(f"#{field}").fill(word)
    page.locator(f"#{field}").press("Enter")
    visit.settle()
    after = page.locator("#panel-positions_and_words").inner_text()
    assert after != before
    assert "octavo inspect" not in after
    assert not re.search(r"\b(is|has|knows|at most)\b", after)


def test_a_cosine_belongs_to_the_words_that_were_requested(visit: Visit, site: Running) -> None:
    """After typing on, the old pair's result is pale; of several requests the last one counts."""
    page = visit.go("positions_and_words", "letters", TEXT).page
    card = page.locator("[aria-labelledby=similarity-title]")
    held: list[Route] = []
    page.route("**/lens/neighbors", lambda route: held.append(route))

    def request_pair(second: str) -> None:
        page.locator("#similarity-second").fill(second)
        page.locator("#similarity-second").press("Tab")  # leaving the field sends the request
        wait_until(lambda: any(f'"c","against":"{second}"' in (each.request.post_data or "") for each in held), page)

    page.locator("#similarity-first").fill("c")
    request_pair("t")
    page.locator("#similarity-second").fill("h")  # typed, not yet requested
    held.pop().continue_()
    visit.settle()
    cosine = get_view(site, "neighbors", word="c", against="t", top=1)["against"]["cosine"]
    assert card.locator(".stale").inner_text().startswith(f"Cosine of c and t: {cosine:.3f}".replace("-", "−"))
    request_pair("h")
    request_pair("m")
    for each in held:
        each.continue_()
    page.unroute("**/lens/neighbors")
    visit.settle()
    assert "Cosine of c and m" in card.inner_text()
    assert card.locator(".stale").count() == 0


@pytest.mark.parametrize("field", ["similarity-first", "similarity-second"])
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("katze", "„katze“ ist hier kein einzelnes Token (5 Stücke)"),
        ("Ω", "nicht alle Buchstaben von „Ω“"),
        ("", "beide Felder"),
    ],
)
def test_a_pair_without_two_rows_is_refused_below_its_fields(visit: Visit, field: str, word: str, reason: str) -> None:
    page = visit.go("positions_and_words", "letters").page
    visit.choose(language="de")
    card = page.locator("[aria-labelledby=similarity-title]")
    page.locator(f"#{field}").fill(word)
    page.locator(f"#{field}").press("Enter")
    visit.settle()
    message = card.locator(".problem:visible")
    assert reason in message.inner_text()
    below, form = message.bounding_box(), card.locator("form").bounding_box()
    assert below
    assert form
    assert 0 <= below["y"] - form["y"] - form["height"] < 30
    assert not card.locator("figure").is_visible()
    assert "Kosinus von" not in card.inner_text()
    page.locator(f"#{field}").fill("t")
    card.get_by_role("button", name="Zeigen").click()
    visit.settle()
    assert card.locator(".problem:visible").count() == 0
    assert card.locator("figure").is_visible()


def test_typing_during_a_request_is_kept(visit: Visit) -> None:
    page = visit.go("positions_and_words", "letters", TEXT).page
    held: list[Route] | None = []
    page.route("**/lens/*", lambda route: route.continue_() if held is None else held.append(route))
    page.locator("#word").fill("t")
    page.locator("#word-at-1").fill("9")  # leaving the word sent the request
    wait_until(lambda: bool(held), page)
    held, late = None, held
    for each in late:
        each.continue_()
    visit.settle()
    assert page.locator("#word-at-1").input_value() == "9"


def test_every_offered_word_is_accepted(visit: Visit) -> None:
    """A Hindi letter is three bytes, so a longer word exceeds the limit on tokens."""
    page = visit.go("positions_and_words", "bytes", "बिल्ली चटाई पर बैठी").page
    for each in page.locator("[aria-labelledby=position-title] button.chip").all()[:3]:
        each.click()
        visit.settle()
        assert page.get_by_role("alert").count() == 0


def test_a_position_out_of_range_is_clamped_and_reported(visit: Visit) -> None:
    page = visit.go("positions_and_words", "letters", TEXT).page
    message = page.get_by_text("Positions run from 0 to 63 here")
    page.locator("#word").fill("t")
    for position, clamped in (("64", "63"), ("-1", "0"), ("63", "63")):
        page.locator("#word-at-1").fill(position)
        page.locator("#word-at-1").press("Enter")
        visit.settle()
        assert page.locator("#word-at-1").input_value() == clamped
        assert message.is_visible() == (position != clamped)


# Tabs and the address


def test_back_restores_tab_and_stage_and_a_reload_keeps_them(visit: Visit) -> None:
    page = visit.go("walk", text=TEXT).page
    for _ in range(5):
        page.locator(".steps button.main").click()
    assert page.url.endswith("#walk/6")
    visit.go("attention").go("training")
    page.go_back()
    page.locator("#panel-attention").wait_for()
    page.go_back()
    page.locator("#panel-walk").wait_for()
    counter = page.locator(".steps .mono")
    assert counter.text_content() == "6 / 18"
    page.reload()
    visit.settle()
    assert counter.text_content() == "6 / 18"
    page.goto(f"{visit.url}/#walk/17")
    wait_until(lambda: counter.text_content() == "17 / 18", page)
    page.goto(f"{visit.url}/#walk/99")
    wait_until(lambda: counter.text_content() == "18 / 18", page)


def test_controls_are_at_least_24_pixels_wide_and_high(visit: Visit) -> None:
    for tab in TABS:
        page = visit.go(tab).page
        small = page.evaluate("""[...document.querySelectorAll("button, input, select, textarea, summary")]
            .filter((each) => each.checkVisibility())
            .map((each) => [Math.min(...["width", "height"].map((side) => each.getBoundingClientRect()[side])), each])
            .filter(([side]) => side < 24).map(([side, each]) => `${side} ${each.outerHTML.slice(0, 90)}`)""")
        assert small == [], tab


def test_tabs_follow_the_aria_pattern_and_change_the_address(visit: Visit) -> None:
    page = visit.go("walk").page
    tabs = page.get_by_role("tab")
    assert tabs.evaluate_all("all => all.map((each) => each.id.slice(4))") == list(TABS)

    def assert_open(name: str) -> None:
        page.locator(f"#panel-{name}").wait_for()
        assert tabs.evaluate_all("all => all.map((each) => each.ariaSelected)").count("true") == 1
        chosen = page.locator("[role=tab][aria-selected=true]")
        assert chosen.get_attribute("id") == f"tab-{name}"
        assert chosen.evaluate("each => each === document.activeElement")
        assert tabs.evaluate_all("all => all.filter((each) => each.tabIndex === 0).length") == 1
        assert page.locator("[role=tabpanel]:visible").get_attribute("aria-labelledby") == f"tab-{name}"
        assert page.url.endswith(f"#{name}")
        visit.settle()

    page.locator("#tab-walk").focus()
    for key, name in (
        ("ArrowRight", "attention"),
        ("ArrowLeft", "walk"),
        ("ArrowLeft", "compare"),
        ("ArrowRight", "walk"),
        ("End", "compare"),
        ("Home", "walk"),
    ):
        page.keyboard.press(key)
        assert_open(name)
    visit.choose(language="ar")
    page.locator("#tab-walk").focus()
    page.keyboard.press("ArrowLeft")  # forward in a right-to-left language
    assert_open("attention")
    page.goto(f"{visit.url}/#positions_and_words")
    page.locator("#panel-positions_and_words").wait_for()
    visit.settle()


def test_language_theme_tab_and_text_survive_a_reload(visit: Visit) -> None:
    page = visit.go("attention", text=TEXT).page
    visit.choose(language="de", theme="dark")
    page.reload()
    page.locator("#tab-attention[aria-selected=true]").wait_for()
    visit.settle()
    assert page.locator("html").get_attribute("lang") == "de"
    assert page.locator("#text").input_value() == TEXT
    assert [page.locator(f"#{name}").input_value() for name in ("language", "theme")] == ["de", "dark"]
    assert page.locator("html").evaluate("each => getComputedStyle(each).colorScheme") == "dark"


def test_the_chosen_step_is_shown_on_every_tab(visit: Visit, site: Running) -> None:
    page = visit.go("walk", "letters", TEXT).page
    first = min(site.models["letters"].steps)
    page.locator("#step").select_option(str(first))
    visit.settle()
    page.locator(".steps button.main").click()
    values = get_view(site, "shapes", text=TEXT, step=first, layer=0, head=0)["stages"][1]["values"]
    for row, expected in zip(visit.table("#panel-walk .matrix"), values, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(expected, rel=1e-5)
    fill_tab(visit, "playground")  # the server generates only with the served step; the browser samples from others
    assert not visit.requests_to("/v1/completions")
    assert page.locator(f"{PLAYGROUND_TEXT} .token").count() > 12
