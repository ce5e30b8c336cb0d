"""The page, in text and in a real browser."""

import re
from pathlib import Path

import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report.multiples import left_out
from isoflop.analysis.report.page import page
from isoflop.analysis.simulate import rate_sweep, simulate
from isoflop.results.record import Record
from tests.analysis.report.browser import Browser, needs_browser
from tests.analysis.report.crowd import MULTIPLIERS, crowd

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SUITE = '# the <b>suite</b> file\nname = "simulated"\n'


def records() -> list[Record]:
    """Everything a page can show; pkm has one budget alone, whose minimum is not to be trusted."""
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4, "pkm": 0.7}
    made = simulate(truth, BUDGETS, octaves=OCTAVES, options=options)
    return [
        record.model_copy(update={"loss": 3.6 - 0.01 * (index % 5)})
        if (record.variant, record.budget) == ("pkm", BUDGETS[-1])
        else record
        for index, record in enumerate(made)
        if record.variant != "pkm" or record.budget == BUDGETS[-1]
    ]


def analysis() -> Analysis:
    tune = [*rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-3), *rate_sweep("pkm", (5e-4, 1e-3), 1e-2)]
    return analyse(records(), tune, samples=200)


@pytest.fixture(scope="module")
def html() -> str:
    return page(analysis(), SUITE)


def test_it_asks_nothing_of_the_network(html: str) -> None:
    outside = re.findall(
        r"""(?:src|href|action)\s*=\s*["'](?!data:)[^"']*|url\([^)]*\)|@import""", html
    )
    library_free = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert [address for address in outside if address in library_free] == []
    assert "sourceMappingURL" not in html
    assert "Released under the MIT License" in html
    assert len(html) < 600_000


def test_it_is_the_same_again_and_holds_the_result(html: str) -> None:
    assert page(analysis(), SUITE) == html
    headline = re.search(r'class="headline">(.*?)</p>', html)
    assert headline
    assert re.match(r"At 6\.4e15 FLOPs, dense needs 1\.\d\dx \[1\.\d\d, 1\.\d\d\] the", headline[1])


def test_text_from_records_and_suite_is_escaped() -> None:
    assert "# the &lt;b&gt;suite&lt;/b&gt; file" in page(analyse(records(), samples=10), SUITE)
    evil = "</script><script>alert(1)</script>"
    named = [
        record.model_copy(update={"variant": evil}) if record.variant == "pkm" else record
        for record in records()
    ]
    assert evil not in page(analyse(named, samples=10))


def test_a_page_of_one_budget_says_so() -> None:
    alone = page(analyse(simulate({"peer": 1.0}, BUDGETS[:1], octaves=OCTAVES), samples=10))
    assert "No compute multiplier at 1e14 FLOPs can be trusted yet." in alone
    assert "There is no suite file" in alone
    assert "No extrapolation test (it takes three budgets), granularity sweep or" in alone


@pytest.fixture(scope="module")
def path(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html, encoding="utf-8")
    return path


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_loads_cleanly_and_fits(browser: Browser, path: Path, width: int, dark: bool) -> None:
    browser.open(path, width, dark=dark)
    assert browser.problems == []
    assert browser.requests == [path.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    wide = browser.evaluate(
        "[...document.querySelectorAll('main > section > *:not(.scroll)')]"
        ".filter((element) => element.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_eighteen_variants_fit(browser: Browser, tmp_path: Path, width: int) -> None:
    records, tune = crowd()
    analysis = analyse(records, tune, samples=10)
    path = tmp_path / "index.html"
    path.write_text(page(analysis), encoding="utf-8")
    browser.open(path, width)
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    drawn = """[...new Set(charts.flatMap((chart) => chart.data.datasets.filter((set, at) =>
        set.variant && chart.isDatasetVisible(at)).map((set) => set.variant)))].sort()"""
    places = "[...document.querySelectorAll('.chart')].filter((box) => box.offsetHeight).length"
    best = [name for name in MULTIPLIERS if name not in left_out(analysis)]
    assert len(best) == 7
    assert browser.evaluate(drawn) == sorted(best)
    assert browser.evaluate(places) == browser.evaluate("charts.length") == 5 * 7 + 7 + 4 + 1
    for label, names in (("all 18", list(MULTIPLIERS)), ("best 6", best)):
        browser.evaluate(
            "[...document.querySelectorAll('[data-hide]')]"
            f".find((button) => button.innerText === '{label}').click()"
        )
        assert browser.evaluate(drawn) == sorted(names)
        pressed = "document.querySelectorAll('[aria-pressed=true]').length"
        assert browser.evaluate(pressed) == len(names)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.problems == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_labels_below_a_panel_do_not_touch(browser: Browser, path: Path, width: int) -> None:
    """The ticks of a log axis are not evenly spaced, and panels may be narrow: their lines stay."""
    browser.open(path, width)
    closest, labels, ticks = browser.evaluate("""(() => {
        let [closest, labels, ticks] = [Infinity, 0, 0];
        for (const { ctx, scales: { x } } of charts) {
            ctx.font = `${Chart.defaults.font.size}px ${Chart.defaults.font.family}`;
            let end = -Infinity;
            x.ticks.forEach(({ label }, i) => {
                ticks += 1;
                if (!label) return;
                const half = ctx.measureText(label).width / 2;
                closest = Math.min(closest, x.getPixelForTick(i) - half - end);
                end = x.getPixelForTick(i) + half;
                labels += 1;
            });
        }
        return [closest, labels, ticks];
    })()""")
    assert closest >= 5
    assert labels >= 2 * browser.evaluate("charts.length")
    described = "page.charts.flatMap(({ x, panels }) => panels.map(() => x.ticks.length))"
    assert ticks == sum(browser.evaluate(described))


@needs_browser
def test_the_layer_under_comparison_is_on_top(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    compared = analyse(records(), highlight="moe-g2", samples=50)
    path.write_text(page(compared, SUITE, "isoflop compare moe"), encoding="utf-8")
    browser.open(path)
    assert browser.problems == []
    first = browser.evaluate("""charts.filter(({ data }) =>
        new Set(data.datasets.map((set) => set.variant)).size > 2).map((chart) => {
        const drawn = chart.getSortedVisibleDatasetMetas().map((meta) => meta._dataset);
        const width = (highlit) => Math.max(...drawn
            .filter((set) => (set.variant === 'moe-g2') === highlit)
            .map((set) => set.borderWidth));
        return [drawn[0].variant, width(true) > width(false)];
    })""")  # Chart.js draws the first of these last
    assert first == [["moe-g2", True]] * 5
    sets = "Chart.getChart('resources-0').data.datasets"
    colour = sets + ".find((set) => set.variant === '{}').borderColor"
    assert browser.evaluate(colour.format("moe-g2")) == "rgba(230,25,95,1)"
    assert browser.evaluate(colour.format("dense")) == "rgba(34,34,34,1)"
    assert browser.evaluate(colour.format("moe-g1")) == "rgba(115,177,213,1)"  # of 0,114,178
    assert browser.evaluate("document.querySelector('.compared th').innerText") == "moe-g2"


@needs_browser
def test_every_chart_is_drawn(browser: Browser, path: Path) -> None:
    browser.open(path)
    inked = browser.evaluate("""[...document.querySelectorAll("canvas")].map((canvas) => {
        const { width, height } = canvas;
        const { buffer } = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return [canvas.id, new Set(new Uint32Array(buffer)).size];
    })""")
    counts = {
        "isoflop": 6, "frontier": 6, "multiplier_scale": 5, "wall_clock": 6, "resources": 4,
        "holdout": 5, "granularity": 1, "learning_rate": 2,
    }  # fmt: skip
    assert [name for name, _ in inked] == [
        f"{name}-{place}" for name, count in counts.items() for place in range(count)
    ]
    assert all(colours > 5 for _, colours in inked)


def shown(browser: Browser, column: int) -> list[str]:
    cells = browser.evaluate(
        "[...document.querySelector('.sortable').tBodies].map((body) => "
        f"body.rows[0].children[{column}].innerText.split('\\n')[0])"
    )
    assert isinstance(cells, list)
    return cells


@needs_browser
def test_the_leaderboard_sorts_with_pointer_and_keys(browser: Browser, path: Path) -> None:
    browser.open(path)
    assert shown(browser, 0) == ["1", "2", "3", "4", "5", "-"]
    first = shown(browser, 1)
    headers = "[...document.querySelectorAll('.sortable thead button')]"
    browser.evaluate(f"{headers}[1].click()")
    assert shown(browser, 1) == sorted(first)
    browser.evaluate(f"{headers}[1].click()")
    assert shown(browser, 1) == sorted(first, reverse=True)
    assert browser.evaluate(f"{headers}[1].closest('th').ariaSort") == "descending"
    browser.evaluate(f"{headers}[2].focus()")
    browser.press("Enter")
    rising = [float(text.split("x")[0].split(" ")[0]) for text in shown(browser, 2)[:-1]]
    assert rising == sorted(rising)
    assert shown(browser, 2)[-1] == "-"  # what has no value stays last, either way
    browser.press("Enter")
    assert shown(browser, 2)[-1] == "-"
    assert shown(browser, 1)[:-1] == first[:-1]
    # flags travel with their variant
    flags = browser.evaluate("[...document.querySelector('.sortable').tBodies].pop().innerText")
    assert flags.startswith("-")
    assert "edge" in flags or "convex" in flags
    # the table of losses and costs is sorted apart from it
    costs = "document.querySelectorAll('.sortable')[1]"
    browser.evaluate(f"{costs}.querySelector('thead button').click()")
    names = f"[...{costs}.tBodies].map((body) => body.rows[0].children[0].innerText)"
    assert browser.evaluate(names) == sorted(first)
    assert shown(browser, 2)[-1] == "-"
    assert browser.problems == []


@needs_browser
def test_a_variant_is_hidden_in_every_chart(browser: Browser, path: Path) -> None:
    browser.open(path)
    visible = (
        "charts.flatMap((chart) => chart.data.datasets.filter((set, at) => "
        "set.variant === 'moe-g4' && chart.isDatasetVisible(at))).length"
    )
    others = visible.replace("=== 'moe-g4'", "!== 'moe-g4'")
    before, kept = browser.evaluate(visible), browser.evaluate(others)
    assert before > 10
    button = "document.querySelector('[data-variant=moe-g4]')"
    browser.evaluate(f"{button}.focus()")
    browser.press(" ")
    assert browser.evaluate(visible) == 0
    # with it goes the baseline behind it
    assert kept - 20 < browser.evaluate(others) < kept
    assert browser.evaluate(f"{button}.ariaPressed") == "false"
    browser.prefer("dark")  # a change of scheme redraws, and must not bring it back
    browser.settle()
    assert browser.evaluate("charts.length") == 35 - 5
    assert browser.evaluate(visible) == 0
    browser.press(" ")
    assert browser.evaluate(visible) == before
    assert browser.problems == []


@needs_browser
def test_pointer_and_arrow_keys_say_what_a_point_is(browser: Browser, path: Path) -> None:
    browser.open(path)
    x, y = browser.evaluate("""(() => {
        const canvas = document.getElementById("multiplier_scale-1");
        canvas.scrollIntoView({ block: "center" });
        const chart = Chart.getChart(canvas);
        const at = chart.data.datasets.findIndex((set) => set.texts);
        const point = chart.getDatasetMeta(at).data[1];
        const box = canvas.getBoundingClientRect();
        return [box.left + point.x, box.top + point.y];
    })()""")
    browser.move(x, y)
    lines = "Chart.getChart('multiplier_scale-1').tooltip.body?.[0].lines"
    browser.settle()
    told = browser.evaluate(lines)
    assert told[0] == "moe-g1, 4e14 FLOPs"
    assert told[1].startswith("by its parabola ")
    browser.evaluate("document.getElementById('frontier-0').focus()")
    spoken = "document.getElementById('spoken').textContent"
    browser.press("ArrowRight")
    assert browser.evaluate(spoken).startswith("dense, 1e14 FLOPs, loss ")
    browser.press("ArrowRight")
    assert browser.evaluate(spoken).startswith("dense, 4e14 FLOPs, loss ")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.evaluate(spoken).startswith("dense, 6.4e15 FLOPs, loss ")


@needs_browser
def test_colours_follow_the_scheme_and_print_is_light(browser: Browser, path: Path) -> None:
    sets = "Chart.getChart('frontier-0').data.datasets"
    baseline = sets + ".find((set) => set.variant === 'dense').borderColor"
    browser.open(path, dark=True)
    assert browser.evaluate(baseline) == "rgba(232,233,235,1)"
    browser.prefer("light")
    browser.settle()
    assert browser.evaluate(baseline) == "rgba(34,34,34,1)"
    browser.prefer("dark")
    browser.settle()
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(baseline) == "rgba(34,34,34,1)"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(baseline) == "rgba(232,233,235,1)"
    assert len(browser.call("Page.printToPDF")["data"]) > 10_000
    assert browser.problems == []
