// Seeded noise without a state: number i of a stream is a hash of the stream's key and i,
// so that Python (genlib/live.py) and the page draw the same numbers from one seed. The
// mixer is a bijection of 32-bit words found by search (Wellons, "hash-prospector").

export function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0xd35a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

// FNV-1a of the text's UTF-8 bytes
export function fnv(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  return hash >>> 0;
}

// The key of the stream that feed `name` reads in training step `step`
export function key(seed, name, step) {
  return mix((mix(mix(seed) ^ fnv(name)) + step) >>> 0);
}

// Number i of a stream, uniform in the open interval 0..1
export function uniform(stream, i) {
  const bits = mix(mix((stream + i) >>> 0) ^ 0x9e3779b9 ^ stream);
  return (bits + 0.5) / 4294967296;
}

export function fillUniform(out, stream) {
  for (let i = 0; i < out.length; i += 1) out[i] = uniform(stream, i);
}

// Standard normal numbers in pairs (Box and Muller, 1958)
export function fillNormal(out, stream) {
  for (let i = 0; i < out.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(stream, i)));
    const angle = 2 * Math.PI * uniform(stream, i + 1);
    out[i] = radius * Math.cos(angle);
    if (i + 1 < out.length) out[i + 1] = radius * Math.sin(angle);
  }
}

// Rows drawn with replacement from a table {data, size, count, scale}
export function fillRows(out, stream, { data, size, count, scale }) {
  for (let i = 0; i * size < out.length; i += 1) {
    const from = Math.floor(uniform(stream, i) * count) * size;
    for (let j = 0; j < size; j += 1) out[i * size + j] = scale * data[from + j];
  }
}
