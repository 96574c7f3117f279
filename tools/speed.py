"""Measure how fast the built pages come up on a slow connection: `make speed`.

Each page is opened in headless Chromium with an empty cache, from a server that
compresses text, over a connection that the browser itself makes slow. The figures are
those of Lighthouse: first and largest contentful paint, total blocking time, layout
shift; and the bytes that come before the reader scrolls or presses anything.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.browser import open_browser  # noqa: E402
from tools.serve import SITE, serving  # noqa: E402

# name -> (kbit/s down, kbit/s up, ms from request to first byte)
PROFILES = {
    "fast3g": (1440, 675, 562.5),  # the developer tools' preset; now "Slow 4G" there
    "lighthouse": (1638.4, 750, 150),  # the same network before those tools scale it
}
# The most that a page may take: milliseconds, a share of the view, bytes
LIMITS = {
    "first": 1000,
    "largest": 1000,
    "blocking": 200,
    "shift": 0.05,
    "bytes": 300_000,
    "waits": 0,  # files that the first view waits for, beside the page itself
}
OBSERVE = """
window.speed = { largest: 0, picture: "", shift: 0, blocking: 0 };
const watch = (type, action) =>
  new PerformanceObserver((list) => list.getEntries().forEach(action))
    .observe({ type, buffered: true });
watch("largest-contentful-paint", (entry) => {
  speed.largest = entry.startTime;
  speed.picture = entry.url ?? "";
});
watch("layout-shift", (entry) => {
  if (!entry.hadRecentInput) speed.shift += entry.value;
});
watch("longtask", (entry) => (speed.blocking += Math.max(0, entry.duration - 50)));
"""
RESULT = """() => {
  const { picture, ...found } = speed;
  const files = performance.getEntriesByType("resource");
  const before = files.filter((file) => file.renderBlockingStatus === "blocking");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  const waits = before.length + (picture && !picture.startsWith("data:") ? 1 : 0);
  return { ...found, first: paint.startTime, waits };
}"""


def measure(browser, address, profile="fast3g", slowdown=1, **options):
    """Open a page with an empty cache; return milliseconds, shift and bytes."""
    options = {"viewport": {"width": 1280, "height": 900}, **options}
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        if profile:
            down, up, latency = PROFILES[profile]
            network = {"offline": False, "latency": latency}
            network["downloadThroughput"] = down * 1000 / 8
            network["uploadThroughput"] = up * 1000 / 8
            session.send("Network.emulateNetworkConditions", network)
        session.send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
        sizes = []
        session.on(
            "Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"])
        )
        page.add_init_script(OBSERVE)
        page.goto(address, wait_until="load")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(300)
        found = page.evaluate(RESULT)
    finally:
        context.close()
    return found | {"bytes": int(sum(sizes))}


def faults(measured):
    """What is too much for a page on a slow connection."""
    return [
        f"{name} is {measured[name]:.3g}, more than {most:,}"
        for name, most in LIMITS.items()
        if measured[name] > most
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="such as book/using.html")
    parser.add_argument("--profile", choices=PROFILES, default="fast3g")
    parser.add_argument("--slowdown", type=float, default=1, help="of the processor")
    parser.add_argument("--width", type=int, default=1280)
    arguments = parser.parse_args()
    if not (SITE / "index.html").exists():
        sys.exit(f"{SITE} is not built; run `make book`")
    pages = arguments.pages or sorted(
        p.relative_to(SITE).as_posix() for p in SITE.glob("notebooks/*.html")
    )
    print(f"{'ms; kB':30}" + "".join(f"{name:>10}" for name in LIMITS))
    wrong = []
    with serving() as address, open_browser() as browser:
        for name in pages:
            found = measure(
                browser,
                address + name,
                arguments.profile,
                arguments.slowdown,
                viewport={"width": arguments.width, "height": 900},
            )
            wrong += [f"{name}: {fault}" for fault in faults(found)]
            row = [f"{found[k]:10.0f}" for k in ("first", "largest", "blocking")]
            row += [f"{found['shift']:10.3f}", f"{found['bytes'] / 1000:10.0f}"]
            row += [f"{found['waits']:10}"]
            print(f"{name:30}{''.join(row)}", flush=True)
    print(*wrong, sep="\n")


if __name__ == "__main__":
    main()
