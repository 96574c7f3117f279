// Texts as numbers: what a reader types or pastes, in a vocabulary of characters.

const PLAIN = {
  "‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "–": "-", "—": "-", "−": "-", "‐": "-",
  "‑": "-", "…": "...", "\t": " ", "\u00a0": " ", "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O",
  "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "·": ".", "•": "-", "×": "x",
};

// A text -> its tokens, and how often each character stood in it that has none. What a
// plain keyboard lacks is first written plainly: curly quotes, dashes, accents.
export function charactersOf(text, chars) {
  const place = new Map([...chars].map((char, i) => [char, i]));
  const tokens = [];
  const unknown = new Map();
  for (const char of text.replace(/\r\n?/g, "\n").normalize("NFC")) {
    const ways = [char, PLAIN[char], char.normalize("NFKD").replace(/\p{M}/gu, "")];
    const way = ways.find((w) => w && [...w].every((c) => place.has(c)));
    if (way === undefined) unknown.set(char, (unknown.get(char) ?? 0) + 1);
    else for (const c of way) tokens.push(place.get(c));
  }
  return { tokens, unknown };
}

// “é”, “字” and 3 others
export function listUnknown(unknown) {
  const names = [...unknown.keys()].map((char) => `“${char === "\n" ? "line break" : char}”`);
  const few = names.slice(0, 8);
  const more = names.length - few.length;
  if (more) return `${few.join(", ")} and ${more} other${more > 1 ? "s" : ""}`;
  return few.length > 1 ? `${few.slice(0, -1).join(", ")} and ${few.at(-1)}` : few[0];
}

// Windows of `width` tokens, one beginning at each place, or at fewer of a long text:
// rows of a table, {data, shape}, or null for a text that has no whole window
export function windowsOf(tokens, width, most = 20000) {
  const places = tokens.length - width + 1;
  if (places < 1) return null;
  const stride = Math.ceil(places / most);
  const count = Math.floor((places - 1) / stride) + 1;
  const data = new Float32Array(count * width);
  for (let i = 0; i < count; i += 1) data.set(tokens.slice(i * stride, i * stride + width), i * width);
  return { data, shape: [count, width] };
}
