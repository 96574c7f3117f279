// What a page does beside showing its text: colours, contents on a phone, copying code.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const NAMES = { auto: "system", light: "light", dark: "dark" };

function colours(mode) {
  const dark = mode === "dark" || (mode === "auto" && system.matches);
  root.dataset.mode = mode;
  root.dataset.theme = dark ? "dark" : "light";
  for (const name of document.querySelectorAll(".mode-name")) name.textContent = NAMES[mode];
  try {
    localStorage.setItem("mode", mode);
  } catch {
    // private windows: the choice lasts as long as the page
  }
}

function colourSwitch(button) {
  const modes = ["auto", "light", "dark"];
  const now = modes.includes(root.dataset.mode) ? root.dataset.mode : "auto";
  colours(now);
  button.addEventListener("click", () =>
    colours(modes[(modes.indexOf(root.dataset.mode) + 1) % modes.length]),
  );
  system.addEventListener("change", () => colours(root.dataset.mode));
}

function contentsMenu(button) {
  const show = (open) => {
    button.setAttribute("aria-expanded", String(open));
    root.classList.toggle("menu-open", open);
    const header = document.querySelector("header.top").offsetHeight;
    root.style.setProperty("--header", `${header}px`);
  };
  button.addEventListener("click", () => show(!root.classList.contains("menu-open")));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && root.classList.contains("menu-open")) {
      show(false);
      button.focus();
    }
  });
}

function copyButton(block) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = block.querySelector("pre").textContent.replace(/\n$/, "");
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
  block.append(button);
}

// What is too wide scrolls in its own box, and is then reachable by the keyboard.
function reachable() {
  const room = document.querySelector("article").clientWidth;
  for (const formula of document.querySelectorAll("span.math")) {
    formula.classList.remove("wide");
    formula.classList.toggle("wide", formula.getBoundingClientRect().width > room);
  }
  for (const box of document.querySelectorAll(
    "article pre, .pst-scrollable-table-container, .math, .cell_output, .cell_output .output",
  )) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// The heading that is being read, in the outline.
function followOutline(outline) {
  const links = new Map();
  for (const link of outline.querySelectorAll("a")) {
    const section = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (section) links.set(section.querySelector("h2, h3, h4") ?? section, link);
  }
  const line = 120; // pixels from the top: a heading above it is being read
  const follow = () => {
    let current;
    for (const [heading, link] of links) {
      if (heading.getBoundingClientRect().top < line) current = link;
    }
    for (const link of links.values()) {
      if (link === current) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    }
  };
  const options = { rootMargin: `-${line}px 0px 0px`, threshold: [0, 1] };
  const observer = new IntersectionObserver(follow, options);
  for (const heading of links.keys()) observer.observe(heading);
  const wide = matchMedia("(min-width: 78.5rem)");
  const fold = () => (outline.querySelector("details").open = wide.matches);
  wide.addEventListener("change", fold);
  fold();
}

// Pictures that the reader has not come near are fetched before paper is asked for.
async function printWhole() {
  const pictures = [...document.querySelectorAll("article img")];
  for (const picture of pictures) picture.loading = "eager";
  await Promise.allSettled(pictures.map((picture) => picture.decode()));
  print();
}

const one = (selector, action) => {
  const element = document.querySelector(selector);
  if (element) action(element);
};
one("button.mode", colourSwitch);
one("button.menu", contentsMenu);
one("nav.outline", followOutline);
one("button.print", (button) => button.addEventListener("click", printWhole));
document.querySelectorAll("article div.highlight").forEach(copyButton);
addEventListener("load", reachable);
addEventListener("resize", reachable);
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("article details")) folded.open = true;
});
