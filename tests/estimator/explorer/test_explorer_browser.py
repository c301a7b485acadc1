"""The page of `ceg report` as a reader has it: opened from a file, with mouse and keyboard, in a headless browser."""

import csv
import io
import itertools
import json
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cegain import algorithms
from cegain.common import text
from cegain.explorer import explorer, grids
from cegain.gain import question
from cegain.gain.evidence import load
from cegain.tables.published_gains import COLUMNS, OPTIONAL_COLUMNS, OWN_ROW_COLUMNS
from tests.estimator.calls import Calls
from tests.estimator.explorer.browser import browser
from tests.estimator.explorer.test_explorer import ALERT, ROWS, grids_of
from tests.estimator.explorer.timing import SLIDE, SLIDER_STEPS

pytestmark = pytest.mark.slow

AT_GRID, BETWEEN = 0.01, 0.03
SETTINGS = 40
"""How many random questions are compared."""
PATIENCE_S = 60.0
ESTIMATE = Calls("estimate")
PNG, SVG = b"\x89PNG\r\n\x1a\n", b"<svg"
WIDE, NARROW = {"width": 1600, "height": 1000}, {"width": 390, "height": 844}
PHONES = (360, 390)
SECTIONS = ("depend", "trust", "ladders", "kernels", "evidence")


class Opened(NamedTuple):
    """A page, and what it asked for and complained of since it was opened."""

    page: Any
    requests: list[str]
    errors: list[str]

    def answer(self) -> dict[str, str]:
        """The answer's data attributes, numbers in full."""
        found: dict[str, str] = self.page.evaluate("({...document.getElementById('answer').dataset})")
        return found

    def sentence(self) -> str:
        said: str = self.page.inner_text("#sentence")
        return said

    def after(self, action: Any) -> None:
        """Do something that changes the question, and wait until it is drawn."""
        before = self.page.evaluate("Number(document.body.dataset.draws)")
        action()
        # Not wait_for_function, which evaluates strings in the page: its policy forbids that.
        deadline = time.monotonic() + PATIENCE_S
        while self.page.evaluate("Number(document.body.dataset.draws)") == before:
            assert time.monotonic() < deadline, "nothing was drawn"
            self.page.wait_for_timeout(10)

    def show_sections(self) -> None:
        """Scroll to every section below the answer, and wait until it is drawn."""
        self.page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        for name in SECTIONS:
            self.page.locator(f"#{name}").scroll_into_view_if_needed()
            self.page.wait_for_selector(f"#{name} .body > *")
        self.page.evaluate("window.scrollTo(0, 0)")

    def ask(self, address: str) -> None:
        """Put a question as a shared address does."""
        if self.page.evaluate("location.hash") != address:
            self.after(lambda: self.page.evaluate("hash => { location.hash = hash; }", address))


@pytest.fixture(scope="module")
def shown() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page, and the user's table that went into it."""
    folder = tmp_path_factory.mktemp("page")
    table = folder / "my_gains.csv"
    table.write_text("\n".join([",".join(c for c in COLUMNS if c not in OPTIONAL_COLUMNS), *ROWS]) + "\n")
    began = time.perf_counter()
    result = Calls("report").call("-o", folder / "ceg.html", "--evidence", table)
    assert result.exit_code == 0, result.output
    print(f"made in {time.perf_counter() - began:.1f} s")
    return folder / "ceg.html", table


def _open(shown: Any, path: Path, **how: Any) -> Opened:
    context = shown.new_context(**({"accept_downloads": True, "viewport": WIDE} | how))
    context.add_init_script("window.alerts = []; window.alert = (text) => window.alerts.push(text);")
    opened = Opened(context.new_page(), [], [])
    opened.page.set_default_timeout(1e3 * PATIENCE_S)
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on(
        "console", lambda said: opened.errors.append(said.text) if said.type in ("error", "warning") else None
    )
    opened.page.goto(path.as_uri())
    opened.page.wait_for_selector("body[data-picture]", state="attached")
    return opened


@pytest.fixture(scope="module")
def opened(shown: Any, files: tuple[Path, Path]) -> Iterator[Opened]:
    found = _open(shown, files[0])
    yield found
    # What every test of this page did asked nobody anything, and nothing went wrong.
    assert [url for url in found.requests if not url.startswith(("data:", "blob:"))] == [files[0].as_uri()]
    assert found.errors == []
    assert found.page.evaluate("window.alerts") == []
    found.page.context.close()


def test_first_view_answers_at_once(opened: Opened) -> None:
    times = opened.page.evaluate("[document.body.dataset.interactive, document.body.dataset.picture].map(Number)")
    print(f"interactive after {times[0]:.0f} ms, picture after {times[1]:.0f} ms")
    assert "Mixture of experts" in opened.sentence()
    assert opened.page.locator("#chart svg").count() > 0


def test_mouse_and_keyboard_change_curve_and_sentence(opened: Opened) -> None:
    page = opened.page
    opened.ask("#algo=moe&flops=1e24")
    curve = "JSON.stringify(document.getElementById('chart').data.map((trace) => Array.from(trace.y ?? [])))"
    first, said = page.evaluate(curve), opened.sentence()
    opened.after(lambda: page.check("#algo-rope"))
    assert page.evaluate(curve) != first
    assert opened.sentence() != said
    page.wait_for_url(re.compile("algo=moe,rope"))
    page.focus("#algo-rope")
    opened.after(lambda: page.keyboard.press("Space"))
    assert page.evaluate(curve) == first
    page.focus("#slider")
    opened.after(lambda: page.keyboard.press("ArrowRight"))
    assert float(opened.answer()["flops"]) == 1.12e24
    page.focus("#flops")
    opened.after(lambda: page.keyboard.press("ArrowDown"))
    assert float(opened.answer()["flops"]) == 1e24
    page.focus("#currency")
    assert page.is_disabled("#device")
    opened.after(lambda: page.keyboard.press("ArrowDown"))
    assert page.evaluate("document.getElementById('currency').value") == "time"
    assert page.is_enabled("#device")
    assert "device time" in opened.sentence()
    box = page.locator("#stage").bounding_box()
    opened.after(lambda: page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2))
    assert 1e20 < float(opened.answer()["flops"]) < 1e23


def test_tab_reaches_every_control(opened: Opened) -> None:
    page = opened.page
    opened.ask("#algo=moe&flops=1e24&currency=time&device=h100&seq-len=2048")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0);")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    wanted = {
        "algo-moe",
        "algo-rope",
        "slider",
        "flops",
        "currency",
        "device",
        "baseline-device",
        "seq-len",
        "save-png",
    }
    assert wanted <= reached


class Asked(NamedTuple):
    """A question that the page can be asked."""

    stack: tuple[str, ...]
    currency: str
    flops: float
    at_grid: bool
    device: str
    seq_len: int

    def address(self) -> str:
        where = "" if self.currency == "flop" else f"&device={self.device}&seq-len={self.seq_len}"
        return f"#algo={','.join(self.stack)}&flops={self.flops!r}&currency={self.currency}{where}"

    def words(self) -> list[str]:
        where = [] if self.currency == "flop" else ["--device", self.device, "--seq-len", str(self.seq_len)]
        return ["--algo", ",".join(self.stack), "--flops", repr(self.flops), "--currency", self.currency, *where]


def drawn(html: str, seed: int) -> Iterator[Asked]:
    """Questions at random, of those that have an answer at some budget; every second one at a budget of the grid."""
    draw = random.Random(seed)
    stacks = grids_of(html)["stacks"]
    for i in itertools.count():
        currency, stack = question.CURRENCIES[i % 4], draw.choice(list(stacks))
        curves = stacks[stack]["time" if currency == "usd" else currency]
        curves = {"h100 2048": curves} if currency == "flop" else curves
        place = draw.choice(list(curves))
        if "gains" not in curves[place]:
            continue
        at_grid = i // 4 % 2 == 0
        x = draw.choice(list(itertools.accumulate(curves[place]["x"]))) / 1e4 if at_grid else draw.uniform(15, 28)
        device, seq_len = place.split()
        yield Asked(tuple(stack.split("+")), currency, 10**x, at_grid, device, int(seq_len))


def test_numbers_are_those_of_the_command(opened: Opened, files: tuple[Path, Path]) -> None:
    worst = {True: 0.0, False: 0.0}
    answered = []
    for s in itertools.islice(drawn(files[0].read_text(encoding="utf-8"), seed=12), SETTINGS):
        expected = ESTIMATE.answer(*s.words(), "--evidence", files[1])["estimates"][0]
        opened.ask(s.address())
        found = opened.answer()
        assert float(found["flops"]) == s.flops
        assert found["status"] == expected["status"], s
        if expected["status"] == "no_evidence":
            assert found["median"] == ""
            continue
        answered.append(s)
        numbers = {"median": expected["ceg_median"], "mean": expected["ceg_mean_median"]}
        for name, key in (("", "predictive_interval_90"), ("50", "predictive_interval_50")):
            numbers |= dict(zip((f"low{name}", f"high{name}"), expected[f"ceg_{key}"], strict=True))
        numbers |= dict(zip(("meanLow", "meanHigh"), expected["ceg_mean_interval"], strict=True))
        for name, value in numbers.items():
            off = abs(float(found[name]) / value - 1)
            assert off <= (AT_GRID if s.at_grid else BETWEEN), (s, name)
            worst[s.at_grid] = max(worst[s.at_grid], off)
    assert len(answered) >= 3 * SETTINGS / 4
    assert {s.currency for s in answered} == set(question.CURRENCIES)
    assert sum(len(s.stack) > 1 for s in answered) >= SETTINGS / 4
    print(f"largest difference from the command at {len(answered)} settings: {worst[True]:.1e} at budgets of the grid, "
          f"{worst[False]:.1e} between")  # fmt: skip


def test_what_the_page_does_not_hold_is_a_command(opened: Opened) -> None:
    opened.ask("#algo=moe,mqa,rope&flops=3e24&currency=time&device=h200&seq-len=8192")
    assert opened.answer()["status"] == "elsewhere"
    assert opened.answer()["median"] == ""
    commands = opened.page.locator("#notes pre").all_inner_texts()
    asked = "--flops 3e24 --currency time --device h200 --seq-len 8192"
    assert commands == [f"ceg-estimate --algo moe,mqa,rope {asked}", "ceg report -o ceg.html --with moe+mqa+rope"]
    assert Calls("estimate").call(*commands[0].split()[1:]).exit_code == 0
    opened.ask("#algo=moe&flops=3e24&currency=usd&device=h200&baseline-device=h100&seq-len=8192")
    (command,) = opened.page.locator("#notes pre").all_inner_texts()
    assert command.endswith("--device h200 --seq-len 8192 --baseline-device h100")
    assert Calls("estimate").call(*command.split()[1:]).exit_code == 0


def test_a_page_can_be_told_what_to_hold(shown: Any, tmp_path: Path, few: None) -> None:
    assert Calls("report").call("-o", tmp_path / "ceg.html", "--with", "rope+moe+muon").exit_code == 0
    found = _open(shown, tmp_path / "ceg.html")
    found.ask("#algo=moe,muon,rope&flops=1e24")
    (expected,) = ESTIMATE.answer("--algo", "moe,muon,rope", "--flops", "1e24")["estimates"]
    assert float(found.answer()["median"]) == pytest.approx(expected["ceg_median"], rel=AT_GRID)
    assert found.errors == []
    found.page.context.close()


@pytest.mark.parametrize("place", ["nav a[href='#trust']", "nav a[href='#kernels']", "a.skip"])
def test_a_link_within_the_page_keeps_the_question(opened: Opened, place: str) -> None:
    opened.ask("#algo=moe,rope&flops=3e22&currency=usd&device=b200")
    said, answer = opened.sentence(), opened.answer()
    link = opened.page.locator(place)
    link.focus()
    opened.after(lambda: opened.page.keyboard.press("Enter"))
    assert (opened.sentence(), opened.answer()) == (said, answer)
    opened.page.wait_for_url(re.compile("algo=moe,rope&flops=3e22&currency=usd"))
    opened.page.wait_for_timeout(1000)  # scrolling is smooth
    target = opened.page.locator(str(link.get_attribute("href")))
    assert abs(target.bounding_box()["y"]) < WIDE["height"]
    opened.after(lambda: opened.page.check("#algo-muon"))
    opened.page.wait_for_url(re.compile("algo=moe,muon,rope&flops=3e22"))
    opened.page.evaluate("window.scrollTo(0, 0)")


def test_what_is_modelled_is_called_so(opened: Opened) -> None:
    opened.ask("#algo=flash_attention&flops=1e24&currency=decode&device=h100")
    assert opened.page.inner_text("#distance") == "Modelled: no published gain takes part."
    lines = opened.page.evaluate(
        "document.getElementById('chart').data.filter((t) => t.line?.dash).map((t) => [t.name, t.line.dash])"
    )
    assert lines == [["median, modelled", "solid"]]


@pytest.mark.parametrize("baseline", ["h100", "a100-80"])
def test_gains_published_in_decoding_time_take_part_on_one_device(
    shown: Any, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch, baseline: str
) -> None:
    monkeypatch.setattr(grids, "DEVICES", ("a100-80", "h100"))
    table = tmp_path / "decode.csv"
    row = "flash_attention,ours,standard_attention,a lab,1e22,reported,1.5,1.2,1.9,0.9,decode,measured,a source,"
    row = row.replace("standard_attention", algorithms.get("flash_attention").replaces[0])
    table.write_text("\n".join([",".join(c for c in COLUMNS if c not in OPTIONAL_COLUMNS), row]) + "\n")
    assert Calls("report").call("-o", tmp_path / "ceg.html", "--evidence", table).exit_code == 0
    found = _open(shown, tmp_path / "ceg.html")
    found.ask(f"#algo=flash_attention&flops=1e24&currency=decode&device=h100&baseline-device={baseline}")
    joined = found.page.inner_text("#distance") == "Modelled, then joined with published gains."
    assert joined == (baseline == "h100")
    assert found.errors == []
    found.page.context.close()


def test_why_an_answer_is_far_is_said(opened: Opened, files: tuple[Path, Path]) -> None:
    for algo, flops in (("rope", 1e28), ("moe,muon,rmsnorm,rope", 1e27), ("transformer", 1e24), ("mqa", 1e24)):
        words = ("--algo", algo, "--flops", flops, "--evidence", files[1])
        (expected,) = ESTIMATE.answer(*words)["estimates"]
        opened.ask(f"#algo={algo}&flops={flops!r}")
        reason = expected["reason"]
        far = f"Status: far extrapolation. {reason[:1].upper()}{reason[1:]}."
        status = {"ok": "Status: ok.", "no_evidence": "Status: no evidence.", "far_extrapolation": far}
        assert opened.page.inner_text("#status") == status[expected["status"]]


def test_nothing_can_be_saved_before_there_is_a_picture_of_something(shown: Any, files: tuple[Path, Path]) -> None:
    buttons = "[...document.querySelectorAll('[id^=save-]')].map((button) => button.disabled)"
    context = shown.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files[0].as_uri())
    assert page.locator("[id^=save-]:disabled").count() == 4
    context.close()
    found = _open(shown, files[0])
    assert found.page.evaluate(buttons) == [False] * 4
    found.ask("#algo=&flops=1e24")
    assert found.page.evaluate(buttons) == [True] * 4
    found.after(lambda: found.page.check("#algo-moe"))
    assert found.page.evaluate(buttons) == [False] * 4
    found.page.context.close()


def test_saved_evidence_runs_in_no_spreadsheet_and_goes_back_as_it_was(shown: Any, tmp_path: Path, few: None) -> None:
    table = tmp_path / "formulas.csv"
    notes = ["=1+1", "+1", "-1", "@SUM(A1)", "'tis", 'a, "quoted" =1']
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([name for name in COLUMNS if name not in ("same_as", "experts", "seq_len", *OWN_ROW_COLUMNS)])
        for i, note in enumerate(notes):
            cells = f"moe,ours,dense,=study {i},1e2{i},useful,{2 + i}.5,,,,flop,,measured,@source".split(",")
            writer.writerow([*cells, note])
    saved = tmp_path / "saved.csv"
    words = ("--evidence", table, "--only-evidence")
    assert Calls("report").call("-o", tmp_path / "ceg.html", *words).exit_code == 0
    found = _open(shown, tmp_path / "ceg.html")
    with found.page.expect_download() as download:
        found.page.click("#save-evidence")
    download.value.save_as(saved)
    found.page.context.close()
    with saved.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["note"] for row in rows] == [f"'{note}" if note[0] in "=+-@" else note for note in notes]
    assert all(row["study"].startswith("'=study") and row["source"] == "'@source" for row in rows)
    assert load([saved], shipped=False) == load([table], shipped=False)


def test_numbers_in_words_are_those_of_the_command(opened: Opened) -> None:
    draw = random.Random(5)
    values = [10 ** draw.uniform(-6, 30) for _ in range(300)]
    halves = [0.125, 0.375, 0.625, 1.125, 2.25, 2.75, 9.25, 12.5, 13.5, 125, 1250, 0.5, 1250000, 2.5, 1.375, 9.9375]
    values += [*halves, *(k / 8 for k in range(1, 80)), 0.0, 0.095, 0.00095, 0.995, 9.95, 1e4, 1.0]
    shares = [draw.random() for _ in range(200)]
    shares += [0.0, 1.0, 0.005, 0.995, 1e-13, 1 - 1e-13, *(k / 200 for k in range(201)), *(k / 64 for k in range(65))]
    flops = [10 ** draw.uniform(6, 30) for _ in range(200)]
    flops += [1e25, 2.5e24, 100500000, 1001 * 5e5, 1e6, 12345e20, 1.0005e9]
    said = opened.page.evaluate(
        """([values, shares, flops]) => [values.map(ceg.words.number), shares.map(ceg.words.share),
          flops.map(ceg.words.budget), values.map((value) => ceg.words.span([value, 3 * value]))]""",
        [values, shares, flops],
    )
    number, share, budget, span = said
    assert dict(zip(values, number, strict=True)) == {value: text.number(value) for value in values}
    assert dict(zip(shares, share, strict=True)) == {value: text.share(value) for value in shares}
    # The page shows three digits, where the command gives up to six.
    assert dict(zip(flops, budget, strict=True)) == {c: text.budget(float(f"{c:.2e}")) for c in flops}
    assert span == [text.span((value, 3 * value)).replace(" - ", " to ") for value in values]


def test_pictures_and_tables_can_be_saved(opened: Opened) -> None:
    page = opened.page
    opened.ask("#algo=moe&flops=1e24")

    def saved(button: str) -> bytes:
        with page.expect_download() as download:
            page.click(button)
        return Path(download.value.path()).read_bytes()

    png, svg = saved("#save-png"), saved("#save-svg")
    assert png.startswith(PNG)
    assert len(png) > 20_000
    assert svg.startswith(SVG)
    assert b"Mixture of experts" in svg
    curve = list(csv.DictReader(io.StringIO(saved("#save-curve").decode())))
    assert len(curve) > 100
    assert all(float(row["low_90"]) < float(row["ceg_median"]) < float(row["high_90"]) for row in curve)
    rows = list(csv.DictReader(io.StringIO(saved("#save-evidence").decode())))
    assert {"our lab", ALERT} < {row["study"] for row in rows}


def test_evidence_is_text_and_a_users_own_is_there(opened: Opened) -> None:
    page = opened.page
    opened.ask("#algo=moe&flops=1e24")
    page.locator("#evidence").scroll_into_view_if_needed()
    page.wait_for_selector("#evidence table")
    table = page.inner_text("#evidence table")
    assert "our lab" in table
    assert "a source of our own" in table
    assert f"{ALERT} & </script>" in table
    assert page.locator("#evidence script").count() == 0
    hovers = page.evaluate("document.getElementById('chart').data.flatMap((trace) => trace.text ?? [])")
    (mine,) = [text for text in hovers if "alert(1)" in text and "our lab" not in text]
    assert "&lt;script&gt;" in mine
    assert "<script" not in mine
    heads = page.locator("#evidence th button")
    heads.nth(4).click()
    budgets = [text for text in page.locator("#evidence tbody td:nth-child(5)").all_inner_texts() if text]
    assert [float(text) for text in budgets] == sorted(float(text) for text in budgets)
    page.fill("#evidence input[type=search]", "our lab")
    assert page.locator("#evidence tbody tr").count() == 1


def test_every_section_is_shown_when_it_is_reached(opened: Opened) -> None:
    opened.show_sections()
    assert re.search(r"hold\s+\d+%", opened.page.inner_text("#trust"))


def test_classes_are_those_of_the_command(opened: Opened, files: tuple[Path, Path]) -> None:
    opened.show_sections()
    expected = Calls("classify").answer("--evidence", files[1])["algorithms"]
    cells = opened.page.locator("#depend tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((cell) => cell.innerText.trim()))"
    )
    paper = {"not_studied": ""}
    assert [row[:4] for row in cells] == [
        [e["algorithm"].replace("_", " "), e["class"], paper.get(e["paper_class"], e["paper_class"]), e["verdict"]]
        for e in expected
    ]
    for row, e in zip(cells, expected, strict=True):
        shares = [float(share) for share in re.findall(r"\d+", row[4])]
        assert shares == pytest.approx([100 * p for p in (e["class_probabilities"] or {}).values()], abs=1.0)
    reasons = opened.page.inner_text("#depend .reasons")
    apart = [e for e in expected if e["verdict"] in ("differs", "open", "no answer")]
    assert apart
    for e in apart:
        assert f"{e['algorithm'].replace('_', ' ')}: {e['verdict']}" in reasons
        assert all(why[1:] in reasons for why in e["why"])  # the first letter may be a capital


def test_every_stack_of_the_ladders_can_be_chosen(shown: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    text = files[0].read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (first, *_) = json.loads(data)["sections"]["ladders"]
    other = first | {"stack": "another", "gains": first["gains"][:2]}
    document = json.loads(data)
    document["sections"]["ladders"] = [first, other]
    path = tmp_path / "two.html"
    path.write_text(text.replace(data, explorer.escaped(document)), encoding="utf-8")
    found = _open(shown, path)
    found.show_sections()
    stack, arm = found.page.locator("#ladders select").all()
    assert stack.locator("option").all_inner_texts() == [first["stack"], "another"]
    assert arm.locator("option").count() == len(first["gains"])
    stack.select_option("1")
    assert found.page.locator("#ladders select").nth(1).locator("option").count() == 2
    assert "another" in found.page.inner_text("#ladders")
    assert found.errors == []
    found.page.context.close()


def test_a_table_says_where_more_of_it_is(opened: Opened) -> None:
    opened.ask("#algo=moe&flops=1e24")
    opened.show_sections()
    opened.page.fill("#evidence input[type=search]", "")
    box, hint = opened.page.locator("#evidence .scroll"), opened.page.locator("#evidence .more")
    assert hint.inner_text() == "Scroll the table for more →↓"
    box.evaluate("box => box.scrollTo(box.scrollWidth, box.scrollHeight)")
    opened.page.wait_for_timeout(100)
    assert hint.inner_text().strip() == ""


def test_rows_below_the_slider_can_be_shown(opened: Opened) -> None:
    opened.ask("#algo=moe&flops=1e24")  # whose rows include one that states no compute
    lowest = (
        "Math.min(...document.getElementById('chart').data.filter((t) => t.mode === 'markers').flatMap((t) => t.x))"
    )
    assert opened.page.evaluate(lowest) > 1e15
    opened.after(lambda: opened.page.check("#everything"))
    assert opened.page.evaluate(lowest) < 1e12
    opened.after(lambda: opened.page.uncheck("#everything"))


def test_no_evidence_is_a_refusal(opened: Opened) -> None:
    opened.ask("#algo=mla&flops=1e24")
    assert opened.answer()["status"] == "no_evidence"
    assert opened.answer()["median"] == ""
    assert opened.sentence().startswith("No answer for")
    assert "needed:" in opened.page.inner_text("#distance")
    opened.ask("#algo=&flops=1e24")
    assert opened.sentence() == "Choose at least one algorithm."


def test_far_from_evidence_the_interval_comes_first(opened: Opened) -> None:
    opened.ask("#algo=rope&flops=1e28")
    assert opened.answer()["status"] == "far_extrapolation"
    said = opened.sentence()
    assert said.index(" to ") < said.index("median")


def test_the_slider_moves_the_answer_quickly(opened: Opened) -> None:
    page = opened.page
    opened.ask("#algo=rmsnorm,rope,swiglu&flops=1e20&currency=usd&device=h200&seq-len=8192")
    taken = page.evaluate(SLIDE, SLIDER_STEPS)
    ordered = sorted(taken)
    print(f"slider update: median {statistics.median(taken):.1f} ms, p90 {ordered[int(0.9 * len(ordered))]:.1f} ms")
    assert len(set(taken)) > 1
    assert float(opened.answer()["flops"]) > 1e25


@pytest.mark.parametrize("width", PHONES)
def test_the_longest_answer_fits_a_phone(shown: Any, files: tuple[Path, Path], width: int) -> None:
    found = _open(shown, files[0], viewport={"width": width, "height": 800})
    found.ask("#algo=moe,muon,rmsnorm,rope&flops=3e25&currency=usd&device=h200&seq-len=8192")
    found.show_sections()
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    found.page.context.close()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("wide", {"viewport": WIDE}),
        ("narrow", {"viewport": NARROW}),
        ("dark", {"viewport": WIDE, "color_scheme": "dark"}),
    ],
)
def test_it_fits_every_screen(
    shown: Any, files: tuple[Path, Path], tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    found = _open(shown, files[0], **how)
    found.show_sections()
    assert found.page.evaluate("document.documentElement.scrollWidth") <= how["viewport"]["width"]
    folder = Path(os.environ.get("CEG_SCREENSHOTS", tmp_path))
    found.page.screenshot(path=folder / f"report_{name}.png")
    assert (folder / f"report_{name}.png").read_bytes().startswith(PNG)
    assert found.errors == []
    paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (json.loads(f"[{paper[4:-1]}]")[0] < 64) == (name == "dark")
    found.page.context.close()
