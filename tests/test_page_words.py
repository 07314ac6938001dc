"""The tab Positions and words shows the numbers that the API returns, and reports unusable words."""

import math
import re
from itertools import chain
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

import octavo
from browser import Visit, open_page, parse_number, parse_numbers, wait_until
from serving import RunningServer
from sites import TEXT, Runs, serve_runs


def test_positions_words_and_neighbors_equal_the_api(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    page.locator("#word").fill("t")
    page.locator("#word-at-1").fill("9")
    page.locator("#word-at-1").press("Enter")
    visit.settle()
    view = site.view("position", word="t", at=[1, 9])
    [piece] = view["tokens"]
    expected = [piece["wte"], piece["wpe"][0], piece["x"][0], piece["wte"], piece["wpe"][1], piece["x"][1]]
    for row, values in zip(visit.table("[aria-labelledby=position-title]"), expected, strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(values, rel=1e-5)
    for row, values in zip(visit.table("[aria-labelledby=wpe-title]"), view["similarity"], strict=True):
        assert parse_numbers(row[1:]) == pytest.approx(values, rel=1e-5)

    page.locator("#similarity-first").fill("a")
    page.locator("#similarity-second").fill("e")
    page.locator("#similarity-second").press("Enter")
    visit.settle()
    view = site.view("neighbors", word="a", against="e", top=1)
    rows = visit.table("[aria-labelledby=similarity-title]")
    assert [parse_number(row[0]) for row in rows] == [each["step"] for each in view["history"]]
    assert [parse_number(row[1]) for row in rows] == pytest.approx(
        [each["against"] for each in view["history"]], rel=1e-5
    )

    page.locator("#find").fill("c")
    page.locator("#find").press("Enter")
    visit.settle()
    neighbors = site.view("neighbors", word="c", top=12)["neighbors"]
    shown = page.locator(".neighbors button").all_text_contents()
    assert [each.split()[0] for each in shown] == [each["token"]["label"] for each in neighbors]
    assert [parse_number(each.split()[1]) for each in shown] == pytest.approx(
        [each["cosine"] for each in neighbors], abs=5e-3
    )


def test_the_first_word_is_one_of_the_text_and_a_single_token_if_there_is_one(
    chromium: Browser, runs: Runs, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. zqx\n" * 60, encoding="utf-8")
    size = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 32}
    pieces = octavo.train(
        tmp_path / "text.txt", out=tmp_path / "pieces", tokenizer="bpe:270", max_steps=1, device="cpu", **size
    )
    served = {"pieces": pieces, "letters": runs.letters}
    with serve_runs(served) as site, open_page(chromium, site.url) as visit:
        word = visit.open_tab("positions_and_words", "pieces", "qx the cat").page.locator("#word")
        assert word.input_value() == "the"
        visit.open_tab("positions_and_words", "letters", "on the mat")
        assert word.input_value() == "on"  # no word is a single token of this model
        word.fill("mat")
        word.press("Enter")
        visit.open_tab("positions_and_words", text="the cat")
        assert word.input_value() == "mat"  # the user has chosen it
        visit.assert_no_faults()


def test_the_map_shows_the_projection_at_the_chosen_step(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    steps = site.models["letters"].steps
    view = site.view("projection", step=max(steps), words=[])
    rows = visit.table("[aria-labelledby=projection-title]")
    assert [parse_number(each) for row in rows for each in row[1:]] == pytest.approx(
        [*chain(*view["points"])], rel=1e-5
    )
    share = round(100 * sum(view["explained"]))
    assert f"{share}%" in (page.locator("[aria-labelledby=projection-title] .caveat").text_content() or "")
    slider = page.locator("#projection-step")
    slider.focus()
    slider.press("Home")
    visit.settle()
    earlier = site.view("projection", step=min(steps), words=[])["points"]
    shown = [[parse_number(each) for each in row[1:]] for row in visit.table("[aria-labelledby=projection-title]")]
    # The page rotates the points to match the last step. Their distances from the center stay the same.
    assert [math.hypot(*each) for each in shown] == pytest.approx([math.hypot(*each) for each in earlier], rel=1e-4)
    assert slider.get_attribute("aria-valuetext") == f"step {min(steps)}"


def test_names_on_the_map_do_not_collide_and_neighbors_follow_the_step(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    page.locator("#find").fill("c")
    page.locator("#find").press("Enter")
    visit.settle()
    slider = page.locator("#projection-step")
    slider.focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        slider.press(key)
        visit.settle()
        boxes = page.evaluate("document.querySelector('.scatter').names")
        assert len(boxes) > 5
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:i]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        step = slider.get_attribute("aria-valuetext")
        assert f"({step})" in page.locator("[aria-labelledby=projection-title]").inner_text()


def test_neighbors_of_a_neighbor_that_is_part_of_a_character_are_shown(visit: Visit, site: RunningServer) -> None:
    """The page requests it by its id, which has no meaning for another model."""
    page = visit.open_tab("positions_and_words", "bytes", TEXT).page
    word, part = next(
        (letter, each["token"])
        for letter in "abcdefghijklmnopqrstuvwxyz"
        for each in site.view("neighbors", "bytes", word=letter, top=12)["neighbors"]
        if each["token"]["id"] > 0xBF  # the first byte of a character
    )
    page.locator("#find").fill(word)
    page.locator("#find").press("Enter")
    visit.settle()
    page.locator(".neighbors button", has_text=part["label"]).click()
    visit.settle()
    assert visit.requests_to("/lens/neighbors")[-1].post_data_json["word"] == part["id"]
    neighbors = site.view("neighbors", "bytes", word=part["id"], top=12)["neighbors"]
    shown = page.locator(".neighbors button").all_text_contents()
    assert [each.split()[0] for each in shown] == [each["token"]["label"] for each in neighbors]
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
def test_an_unusable_word_is_reported_in_the_chosen_language(visit: Visit, field: str, word: str) -> None:
    """It has several tokens, or letters that the tokenizer doesn't know. The server refuses no request."""
    page = visit.open_tab("positions_and_words", "letters").page
    visit.choose(language="de")
    before = page.locator("#panel-positions_and_words").inner_text()
    page.locator(f"#{field}").fill(word)
    page.locator(f"#{field}").press("Enter")
    visit.settle()
    after = page.locator("#panel-positions_and_words").inner_text()
    assert after != before
    assert "octavo inspect" not in after
    assert not re.search(r"\b(is|has|knows|at most)\b", after)


def test_the_shown_cosine_is_that_of_the_shown_words(visit: Visit, site: RunningServer) -> None:
    """While the reader types, the old result is pale. The last of several requests is shown."""
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    card = page.locator("[aria-labelledby=similarity-title]")
    pending: list[Route] = []
    page.route("**/lens/neighbors", lambda route: pending.append(route))

    def request_pair(second: str) -> None:
        page.locator("#similarity-second").fill(second)
        page.locator("#similarity-second").press("Tab")  # leaving the field sends the request
        wait_until(lambda: any(f'"c","against":"{second}"' in (each.request.post_data or "") for each in pending), page)

    page.locator("#similarity-first").fill("c")
    request_pair("t")
    page.locator("#similarity-second").fill("h")  # typed, not yet requested
    pending.pop().continue_()
    visit.settle()
    cosine = site.view("neighbors", word="c", against="t", top=1)["against"]["cosine"]
    assert card.locator(".stale").inner_text().startswith(f"Cosine of c and t: {cosine:.3f}".replace("-", "−"))
    request_pair("h")
    request_pair("m")
    for each in pending:
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
def test_the_reason_for_a_missing_cosine_is_below_its_fields(visit: Visit, field: str, word: str, reason: str) -> None:
    page = visit.open_tab("positions_and_words", "letters").page
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


def test_text_typed_during_a_request_is_kept(visit: Visit) -> None:
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    pending: list[Route] | None = []
    page.route("**/lens/*", lambda route: route.continue_() if pending is None else pending.append(route))
    page.locator("#word").fill("t")
    page.locator("#word-at-1").fill("9")  # leaving the word sent the request
    wait_until(lambda: bool(pending), page)
    pending, delayed = None, pending
    for each in delayed:
        each.continue_()
    visit.settle()
    assert page.locator("#word-at-1").input_value() == "9"


def test_every_suggested_word_is_accepted(visit: Visit) -> None:
    """A Hindi letter has three bytes, so the limit on tokens excludes longer words."""
    page = visit.open_tab("positions_and_words", "bytes", "बिल्ली चटाई पर बैठी").page
    for each in page.locator("[aria-labelledby=position-title] button.chip").all()[:3]:
        each.click()
        visit.settle()
        assert page.get_by_role("alert").count() == 0


def test_a_position_out_of_range_is_clamped_and_reported(visit: Visit) -> None:
    page = visit.open_tab("positions_and_words", "letters", TEXT).page
    message = page.get_by_text("Positions run from 0 to 63 here")
    page.locator("#word").fill("t")
    for position, clamped in (("64", "63"), ("-1", "0"), ("63", "63")):
        page.locator("#word-at-1").fill(position)
        page.locator("#word-at-1").press("Enter")
        visit.settle()
        assert page.locator("#word-at-1").input_value() == clamped
        assert message.is_visible() == (position != clamped)
