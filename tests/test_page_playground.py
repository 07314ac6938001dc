"""The tab Playground: generated texts, probabilities, the logit lens, contributions and surprisal equal the API's."""

import math
import re

import pytest
from playwright.sync_api import Browser, Locator

from browser import (
    PLAYGROUND_TEXT,
    THEMES,
    Visit,
    axe_violations,
    generate_text,
    open_page,
    parse_number,
    wait_for_text,
    wait_until,
)
from serving import RunningServer
from sites import TEXT, softmax, token_ids


def bar_probabilities(visit: Visit) -> dict[int, float]:
    """The probabilities on the screen by token id; -1 is the sum of all other tokens."""
    bars = visit.page.locator(".next-token .token-bars > li:visible").evaluate_all(
        """all => all.map((each) =>
            [each.dataset.id ?? -1, each.dataset.probability, each.querySelector(".share").textContent])"""
    )
    for _, probability, text in bars:
        assert text.startswith("<") or float(text.strip("%")) == pytest.approx(100 * float(probability), abs=0.051)
    return {int(id): float(probability) for id, probability, _ in bars}


def assert_bars_go_to_100_percent(tracks: Locator) -> None:
    """The length of each bar in its track is the probability that is printed beside it."""
    bars = tracks.evaluate_all("""all => all.filter((each) => each.checkVisibility()).map((each) => [
        each.firstChild.getBoundingClientRect().width / each.getBoundingClientRect().width,
        each.parentElement.querySelector(".share").textContent])""")
    assert len(bars) > 5
    for length, text in bars:
        assert 100 * length == pytest.approx(parse_number(text), abs=0.3)


def drag(slider: Locator, share: float) -> None:
    """Drag the thumb of a slider to a share of its length."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    mouse, y = slider.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + box["width"] / 2, y)
    mouse.down()
    for step in range(11):
        mouse.move(box["x"] + 8 + (box["width"] - 16) * (0.5 + (share - 0.5) * step / 10), y)
    mouse.up()


def test_the_sampling_sliders_change_the_probabilities_without_a_request(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("playground", "letters").page
    generate_text(visit, "the cat", length=6)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(7).click()
    visit.settle()
    expected = softmax(site.view("next_token", text=token_ids(site, "the cat"))["logits"])
    page.locator(".sampling button").click()  # temperature 1, all tokens
    before = len(visit.requests_to("/lens/"))
    assert_bars_go_to_100_percent(page.locator(".token-bars .track"))
    for id, probability in bar_probabilities(visit).items():
        assert probability == pytest.approx(expected[id], abs=1e-5) if id >= 0 else probability > 0
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
        best = sorted(range(len(expected)), key=lambda id: -expected[id])[:k]
        assert shown == pytest.approx(
            {id: expected[id] / sum(expected[each] for each in best) for id in best}, abs=1e-5
        )
    page.locator("#sampling-topk").press("Home")
    assert list(bar_probabilities(visit).values()) == [1]
    page.locator("#sampling-topk").press("End")
    page.locator("#sampling-temperature").press("Home")  # temperature 0: greedy
    assert list(bar_probabilities(visit).values()) == [1]
    page.wait_for_timeout(300)  # longer than the page delays any request
    assert len(visit.requests_to("/lens/")) == before
    assert len(visit.requests_to("/v1/completions")) == 1


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_a_branch_continues_the_ids_before_it_with_the_chosen_token(
    visit: Visit, site: RunningServer, model: str
) -> None:
    page = visit.open_tab("playground", model).page
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

    # The tree has both branches. The first is unchanged.
    items = page.get_by_role("treeitem")
    assert [each.get_attribute("aria-level") for each in items.all()] in (["1", "2", "3"], ["1", "2", "2"])
    page.locator("#branch-2-name").click()
    visit.settle()
    assert text.text_content() == first
    assert len(visit.requests_to("/v1/completions")) == 2


def test_the_last_row_of_the_logit_lens_is_the_bars_and_contributions_sum_to_the_logit(
    visit: Visit, site: RunningServer
) -> None:
    page = visit.open_tab("playground", "letters").page
    generate_text(visit, "the cat", length=6)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(9).dispatch_event("click")  # a combining mark may have no width
    visit.settle()
    page.locator(".sampling button").click()
    text = page.locator(PLAYGROUND_TEXT).text_content() or ""
    ids = token_ids(site, text)[:9]
    view = site.view("logit_lens", text=ids, positions=[8], top=5)
    stages = page.locator(".logit-lens tbody tr")
    rows = stages.evaluate_all("""all => all.map((row) => [...row.querySelectorAll(".prediction")].map((each) =>
        [each.querySelector("bdi").textContent, +each.dataset.share, each.querySelector("small").textContent]))""")
    for row, layer, shares in zip(rows, view["ids"], view["probabilities"], strict=True):
        assert [each[0] for each in row] == [view["vocabulary"][str(id)] for id in layer[0]]
        assert [each[1] for each in row] == pytest.approx(shares[0], rel=1e-5)
    ladder = page.locator(".token-bars > li:visible").evaluate_all("""all => all.map((each) =>
        [each.querySelector("bdi")?.textContent, each.querySelector(".share").textContent])""")
    assert [[each[0], each[2]] for each in rows[-1]] == ladder[:5]

    # The contributions sum to the logit.
    token = page.locator("#contributions-token option").first.text_content() or ""
    logits = site.view("next_token", text=ids)["logits"]
    assert token.startswith(view["vocabulary"][str(view["ids"][-1][0][0])])
    page.locator("#contributions-token").select_option(index=0)
    visit.settle()
    parts = [parse_number(row[1]) for row in visit.table("#panel-playground .contributions")]
    assert sum(parts) == pytest.approx(max(logits), abs=5e-4 * len(parts))
    assert parse_number(page.locator(".contributions .total").text_content() or "") == pytest.approx(
        max(logits), abs=1e-3
    )


def test_contributions_to_part_of_a_character_are_requested_by_token_id(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("playground", "bytes").page
    generate_text(visit, "القطة", length=4)
    page.locator(f"{PLAYGROUND_TEXT} .token").nth(1).click()
    visit.settle()
    ids = token_ids(site, "القطة", "bytes")
    request = visit.requests_to("/lens/contributions")[-1].post_data_json
    assert (request["text"], request["token"]) == (ids[:2], ids[2])  # a byte of the second letter
    view = site.view("contributions", "bytes", text=ids[:2], position=1, token=ids[2])
    parts = [parse_number(row[1]) for row in visit.table("#panel-playground .contributions")]
    assert parts == pytest.approx(view["contributions"], abs=5.1e-5)


def test_surprisal_in_bits_and_rank_equals_the_api(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("playground", "letters").page
    page.locator("#surprisal-text").fill(TEXT)
    page.locator(".surprisal button[type=submit]").click()
    page.locator(".surprisal .token").first.wait_for()
    view = site.view("surprisal", text=TEXT)
    rows = visit.table(".surprisal")
    bits = [each / math.log(2) for each in view["surprisal"][1:]]
    assert [parse_number(row[2]) for row in rows] == pytest.approx(bits, abs=5.1e-3)
    assert [int(row[4]) for row in rows] == view["rank"][1:]
    total = page.locator(".surprisal .sum").text_content() or ""
    expected = [view["loss"] / math.log(2), view["loss"], view["perplexity"], view["bits_per_byte"]]
    assert [parse_number(each) for each in re.findall(r"\d[\d,]*\.\d+", total)] == pytest.approx(expected, rel=2e-3)
    # The legend counts the bars of each height. The heights differ in more than color.
    for name, edges, values in (
        ("bits", [1, 2, 4, 7, 11], bits),
        ("rank", [1.5, 3.5, 10.5, 100.5, 1000.5], view["rank"][1:]),
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


def test_stop_ends_generation_and_frees_the_slot(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("playground", "slow").page
    page.locator("#length").fill("2000")
    page.locator("#panel-playground button[type=submit]").first.click()
    wait_until(lambda: page.locator("#panel-playground .new").count() > 3, page)
    stop = page.get_by_role("button", name="Stop", exact=True)
    assert not site.is_idle()
    stop.click()
    wait_until(site.is_idle, page)
    wait_until(lambda: site.app.drain.running == 0, page)
    assert stop.is_disabled()
    length = len(page.locator(PLAYGROUND_TEXT).text_content() or "")
    page.locator("#panel-playground .next-token:visible").wait_for()
    visit.settle()
    assert abs(len(page.locator(PLAYGROUND_TEXT).text_content() or "") - length) < 40
    assert "Stopped" in (page.locator("#panel-playground form").first.text_content() or "")


def test_a_text_is_marked_by_surprisal_generated_again_and_copied(chromium: Browser, site: RunningServer) -> None:
    with open_page(chromium, site.url, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.open_tab("playground", "letters").page
        generate_text(visit, "the cat", length=12)
        text = page.locator(PLAYGROUND_TEXT)
        first = text.text_content()
        page.locator(f"{PLAYGROUND_TEXT} .surprisal-bar").first.wait_for()
        bits = [(each or 0) / math.log(2) for each in site.view("surprisal", text=token_ids(site, first))["surprisal"]]
        levels = [sum(each >= threshold for threshold in (1, 2, 4, 7, 11)) for each in bits]
        classes = text.locator(".token").evaluate_all("all => all.map((each) => each.className)")
        assert [int(re.search(r"level-(\d)", each)[1]) for each in classes] == levels  # type: ignore[index]
        page.get_by_role("button", name="Copy text").click()
        page.get_by_text("Text copied.").first.wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == first
        before = page.locator(".tree [role=treeitem]").count()
        page.get_by_role("button", name="Generate again").click()
        wait_for_text(visit)
        assert page.locator(".tree [role=treeitem]").count() == before + 1
        assert text.text_content().startswith("the cat")  # type: ignore[union-attr]
        visit.assert_no_faults()


def test_a_text_continues_in_the_box_where_it_was_written_and_branches_survive_a_reload(
    visit: Visit, site: RunningServer
) -> None:
    page = visit.open_tab("playground", "letters").page
    text, editor = page.locator(PLAYGROUND_TEXT), page.locator("#prompt")
    page.locator("#length").fill("6")
    page.locator(f"{PLAYGROUND_TEXT} .token").first.press("F2")  # by keyboard alone
    assert editor.evaluate("editor => editor === document.activeElement")
    editor.fill("the cat")
    box = editor.bounding_box()
    editor.press("Control+Enter")
    wait_for_text(visit)
    assert not editor.is_visible()
    tokens = text.bounding_box()
    assert box
    assert tokens
    assert [box[side] for side in ("x", "y", "width")] == [tokens[side] for side in ("x", "y", "width")]
    first = text.text_content() or ""
    assert first.startswith("the cat")
    assert len(first) > len("the cat")

    # The editor has the whole text. Escape closes it and changes nothing.
    text.locator(".token").first.press("F2")
    assert editor.input_value() == first
    editor.press("Escape")
    visit.settle()
    assert text.locator(".token:focus").count() == 1
    page.locator("#panel-playground button[type=submit]").first.click()
    wait_for_text(visit)
    first_request, second = (each.post_data_json for each in visit.requests_to("/v1/completions"))
    assert second["prompt"][: len(first_request["prompt"])] == first_request["prompt"]
    assert len(second["prompt"]) == len(first_request["prompt"]) + 6
    longer = text.text_content() or ""
    assert longer.startswith(first)

    # A text that was edited is a new root. A reload keeps all branches and the one on screen.
    generate_text(visit, "on the mat", length=4)
    page.get_by_role("treeitem", name="the cat").last.click()
    visit.settle()
    names = page.get_by_role("treeitem").all_text_contents()
    assert len(names) == 4
    page.reload()
    page.locator(f"{PLAYGROUND_TEXT} .token").first.wait_for()
    visit.settle()
    assert page.get_by_role("treeitem").all_text_contents() == names
    assert text.text_content() == longer
    assert len(visit.requests_to("/v1/completions")) == 3


def test_a_model_with_a_chat_template_has_a_chat(visit: Visit, site: RunningServer) -> None:
    page = visit.open_tab("playground", "letters").page
    chat = page.get_by_role("radio", name="Chat")
    assert not chat.is_visible()  # no chat template
    visit.open_tab("playground", "long")
    page.locator("#sampling-temperature").press("Home")  # greedy, so that the answer can be requested again
    chat.check()
    message, answers = page.locator("#message"), page.locator(".messages .assistant .message")
    message.fill("Hello")
    message.press("Enter")
    visit.settle()
    messages = [{"role": "user", "content": "Hello"}]
    answer = site.post("/v1/chat/completions", model="long", messages=messages, temperature=0)
    expected = answer.json["choices"][0]["message"]["content"]
    assert answers.all_text_contents() == [expected]
    page.get_by_role("button", name="Generate again").click()
    visit.settle()
    assert visit.requests_to("/v1/chat/completions")[1].post_data_json["messages"] == messages
    message.fill("And then?")
    message.press("Enter")
    visit.settle()
    sent = visit.requests_to("/v1/chat/completions")[2].post_data_json["messages"]
    assert [each["content"] for each in sent] == ["Hello", expected, "And then?"]
    for theme in THEMES:
        visit.choose(theme=theme)
        assert axe_violations(visit) == []
    visit.choose(language="ar")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    shown = page.locator(".messages .message").all_text_contents()
    page.reload()
    visit.settle()
    page.locator("input[value=chat]").check()
    assert page.locator(".messages .message").all_text_contents() == shown
