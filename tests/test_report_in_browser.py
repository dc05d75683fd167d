"""report.html in a real browser: on a phone and on a wide screen, by day, in the dark, and on paper."""

import shutil

import pytest

from report.page import write_report
from tests.test_report import write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, WIDE = 390, 1200
SMALLEST_TEXT = 12
# Of text against what is behind it: WCAG AA.
LEAST_CONTRAST = 4.5

# What one sees that should not be: each a list, empty where all is well.
LOOK = """() => {
  const shown = element => { const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && getComputedStyle(element).visibility !== 'hidden'; };
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const name = element => `${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 30)}`;
  const all = [...document.body.querySelectorAll('*')].filter(shown);
  const texts = all.filter(own);
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d',
    {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => { for (; element; element = element.parentElement) {
    const colour = rgba(getComputedStyle(element).backgroundColor); if (colour[3] > 250) return colour; }
    return [255, 255, 255]; };
  const contrast = element => { const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); };
  const overlap = (a, b) => { const [p, q] = [a, b].map(e => e.getBoundingClientRect());
    const shared = (from, to) => Math.min(p[to], q[to]) - Math.max(p[from], q[from]);
    return shared('left', 'right') > 1 && shared('top', 'bottom') > 1; };
  const crowded = [...document.querySelectorAll('.x, .y')].flatMap(axis => {
    const ticks = [...axis.children].filter(shown);
    return ticks.flatMap((a, i) => ticks.slice(i + 1).filter(b => overlap(a, b)).map(b => name(a) + name(b))); });
  return {
    page: document.documentElement.scrollWidth > innerWidth ? [document.documentElement.scrollWidth] : [],
    outside: all.filter(e => !e.closest('.scroll') && !e.closest('svg'))
      .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1).map(name),
    tiny: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < SMALLEST_TEXT).map(name),
    faint: texts.filter(e => contrast(e) < LEAST_CONTRAST).map(e => `${name(e)} ${contrast(e).toFixed(1)}`),
    crowded,
    empty: all.filter(e => e.matches('.area')).filter(e => !e.querySelector('svg path[d]')).map(name),
  };
}""".replace("SMALLEST_TEXT", str(SMALLEST_TEXT)).replace("LEAST_CONTRAST", str(LEAST_CONTRAST))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return write_report(write_run(folder / "first"), write_run(folder / "second", config={"seed": 1}))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, path, width, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda request: page.heard.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_all_of_it_can_be_seen(browser, report, width, scheme):
    page = opened(browser, report, width, scheme)
    assert page.evaluate("innerWidth") == width
    assert {what: found for what, found in page.evaluate(LOOK).items() if found} == {}
    assert page.heard == [report.as_uri()], "it asks for nothing and complains of nothing"
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert is_dark == (scheme == "dark")
    page.close()


@pytest.mark.parametrize("what, spoiled", [
    ("page", '<div style="width: 500px; height: 2px">a</div>'),
    ("outside", '<div style="position: relative; left: -40px; width: 50px; height: 5px"></div>'),
    ("tiny", '<p style="font-size: 8px">too small</p>'),
    ("faint", '<p style="color: #999">too faint</p>'),
    ("crowded", '<div class="x"><span style="left: 10%">10,000</span><span style="left: 12%">11,000</span></div>'),
    ("empty", '<div class="area"></div>'),
])  # fmt: skip
def test_what_is_badly_set_would_be_found(browser, report, what, spoiled):
    page = opened(browser, report, PHONE)
    page.evaluate("html => document.querySelector('main').insertAdjacentHTML('beforeend', html)", spoiled)
    assert page.evaluate(LOOK)[what]
    page.close()


def shown_panels(page) -> list[str]:
    return [
        name for name in ("steps", "tokens", "flops", "seconds") if page.locator(f".panel.{name}").first.is_visible()
    ]


def test_axes_change_without_script_and_paper_shows_all(browser, report):
    page = opened(browser, report, PHONE)
    assert shown_panels(page) == ["steps"]
    for name, label in (("flops", "Compute"), ("seconds", "Time"), ("tokens", "Tokens")):
        page.get_by_text(label, exact=True).and_(page.locator("label")).click()
        assert shown_panels(page) == [name]
    page.emulate_media(media="print", color_scheme="dark")
    assert shown_panels(page) == ["steps", "tokens", "flops", "seconds"]
    assert page.get_by_text("warmup_steps").is_visible(), "folded away on a screen, and not on paper"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_a_plot_has_its_lines_where_its_axes_say(browser, report):
    """The last held-out dot of the loss over steps stands above the last step, at its height."""
    page = opened(browser, report, WIDE)
    place = page.evaluate("""() => { const panel = document.querySelector('.panel.steps');
      const [dots, area] = [[...panel.querySelectorAll('.dots.phase3')].at(-1), panel.querySelector('.area')];
      const [box, all] = [dots.getBoundingClientRect(), area.getBoundingClientRect()];
      const ticks = [...panel.querySelectorAll('.y span')];
      const four = ticks.find(tick => tick.textContent === '4').getBoundingClientRect();
      return {right: (box.right - all.left) / all.width, bottom: box.bottom, four: four.top + four.height / 2,
              top: all.top, end: all.bottom}; }""")
    assert place["right"] == pytest.approx(1, abs=0.02)
    assert place["top"] < place["four"] < place["bottom"] < place["end"], "3.03 stands below 4, within the plot"
    page.close()
