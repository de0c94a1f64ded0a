// Reads an int8 artifact and runs it, with nothing but Node and docs/artifact.md.
//
//     node read_artifact.js model.safetensors images.f32 32 32 [hashes]
//
// images.f32 holds float32 images [N, 3, height, width], little-endian; 32 32 are height and width.
// Prints the class of each image; with "hashes" also the SHA-256 of every node's integers.
"use strict";
const fs = require("node:fs");
const crypto = require("node:crypto");

const f32 = Math.fround; // rounds a number to float32

// ---- The file ----

const ARRAYS = { U8: Uint8Array, I8: Int8Array, F32: Float32Array, F64: Float64Array };
const TORCH = { U8: "uint8", I8: "int8", F32: "float32", F64: "float64" };

function readArtifact(path) {
  const file = fs.readFileSync(path);
  const length = Number(file.readBigUInt64LE(0));
  const { __metadata__: metadata, ...places } = JSON.parse(file.toString("utf8", 8, 8 + length));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(places)) {
    const bytes = Uint8Array.from(file.subarray(8 + length + start, 8 + length + end));
    tensors[name] = { dtype, shape, bytes, data: new ARRAYS[dtype](bytes.buffer) };
  }
  const header = JSON.parse(metadata.qzoo);
  if (header.format !== "qzoo-int8" || header.version !== 3) throw Error("no artifact of version 3");
  if (checksum(metadata.qzoo, header.sha256, tensors) !== header.sha256) throw Error("damaged");
  return { header, tensors };
}

function checksum(text, stored, tensors) {
  const sha = crypto.createHash("sha256").update(text.replace(`,"sha256":"${stored}"`, ""));
  for (const name of Object.keys(tensors).sort()) {
    const { dtype, shape, bytes } = tensors[name];
    sha.update(`${name}:torch.${TORCH[dtype]}:[${shape.join(", ")}]`).update(bytes);
  }
  return sha.digest("hex");
}

// ---- The arithmetic ----

function halfToEven(x) {
  const floor = Math.floor(x), rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

const within = (q, node) => Math.min(Math.max(q, node.low), node.high);
const rounded = (steps, node) => within(halfToEven(steps) + node.zero_point, node);
const scale = (node) => f32(node.scale);
const size = (shape) => shape.reduce((product, n) => product * n, 1);

/** A tensor [batch, channels, height, width] or [batch, features] of a node. */
function tensor(shape, node, kind = Uint8Array) {
  return { shape, node, data: new kind(size(shape)) };
}

/** Calls back with batch, channel and pixel position of every element, in order. */
function each([batch, channels, height = 1, width = 1], visit) {
  for (let n = 0, i = 0; n < batch; n++)
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++, i++) visit(i, n, c, y, x);
}

/** Where an element lies; sizes of 1 are repeated. */
function at([, channels, height = 1, width = 1], n, c, y, x) {
  const row = (n * channels + (channels === 1 ? 0 : c)) * height + (height === 1 ? 0 : y);
  return row * width + (width === 1 ? 0 : x);
}

/** Multipliers and biases of a conv2d or linear, float32, a pair for each output channel. */
function factors(node, input, tensors, channel) {
  const own = (what) => tensors[`${node.name}.${what}`];
  const pick = (t) => t.data[t.shape.length ? channel : 0];
  const weightScale = node.float ? 1 : f32(pick(own("weight_scale")));
  const bias = own("bias");
  return {
    weightZero: own("weight_zero_point") ? pick(own("weight_zero_point")) : 0,
    factor: f32(((node.float ? 1 : scale(input.node)) * weightScale) / scale(node)),
    bias: bias ? f32(bias.data[channel] / scale(node)) : 0,
  };
}

/** What a layer multiplies: an integer less its zero point, or a real number if it is kept in float. */
function factorOf(node, input, q) {
  const steps = q - input.node.zero_point;
  return node.float ? f32(steps * scale(input.node)) : steps;
}

const OPERATIONS = {
  affine(node, [input]) {
    const out = tensor(input.shape, node, Float32Array);
    each(out.shape, (i, _, c) => {
      out.data[i] = f32(f32(input.data[i] * f32(node.gain[c])) + f32(node.offset[c]));
    });
    return out;
  },

  quantize(node, [input]) {
    const out = tensor(input.shape, node), factor = f32(1 / scale(node));
    input.data.forEach((x, i) => { out.data[i] = rounded(f32(x * factor), node); });
    return out;
  },

  dequantize(node, [input]) {
    const out = tensor(input.shape, node, Float32Array);
    input.data.forEach((q, i) => { out.data[i] = (q - input.node.zero_point) * scale(input.node); });
    return out;
  },

  conv2d(node, [input], tensors) {
    const weight = tensors[`${node.name}.weight`];
    const [outputs, channels, kh, kw] = weight.shape, [batch, , height, width] = input.shape;
    const [top, left, bottom, right] = node.padding, [sy, sx] = node.stride, [dy, dx] = node.dilation;
    const rows = Math.floor((height + top + bottom - dy * (kh - 1) - 1) / sy) + 1;
    const columns = Math.floor((width + left + right - dx * (kw - 1) - 1) / sx) + 1;
    const out = tensor([batch, outputs, rows, columns], node);
    const all = Array.from({ length: outputs }, (_, c) => factors(node, input, tensors, c));
    each(out.shape, (i, n, c, y, x) => {
      const { weightZero, factor, bias } = all[c];
      const first = Math.floor(c / (outputs / node.groups)) * channels;
      let sum = 0;
      for (let k = 0; k < channels; k++)
        for (let v = 0; v < kh; v++)
          for (let u = 0; u < kw; u++) {
            const py = y * sy - top + v * dy, px = x * sx - left + u * dx;
            if (py < 0 || px < 0 || py >= height || px >= width) continue;
            const w = weight.data[((c * channels + k) * kh + v) * kw + u] - weightZero;
            sum += w * factorOf(node, input, input.data[at(input.shape, n, first + k, py, px)]);
          }
      out.data[i] = rounded(f32(f32(f32(sum) * factor) + bias), node);
    });
    return out;
  },

  linear(node, [input], tensors) {
    const weight = tensors[`${node.name}.weight`], [outputs, features] = weight.shape;
    const out = tensor([input.shape[0], outputs], node);
    each(out.shape, (i, n, c) => {
      const { weightZero, factor, bias } = factors(node, input, tensors, c);
      let sum = 0;
      for (let k = 0; k < features; k++) {
        const w = weight.data[c * features + k] - weightZero;
        sum += w * factorOf(node, input, input.data[n * features + k]);
      }
      out.data[i] = rounded(f32(f32(f32(sum) * factor) + bias), node);
    });
    return out;
  },

  add: (node, inputs) => joined(node, inputs, (a, b) => {
    const steps = ({ steps, node: source }) => f32(steps * f32(scale(source) / scale(node)));
    return f32(steps(a) + steps(b));
  }),

  mul: (node, inputs) => joined(node, inputs, (a, b) =>
    f32(f32(a.steps * b.steps) * f32((scale(a.node) * scale(b.node)) / scale(node)))),

  concat(node, inputs) {
    const channels = inputs.reduce((sum, input) => sum + input.shape[1], 0);
    const out = tensor([inputs[0].shape[0], channels, ...inputs[0].shape.slice(2)], node);
    let first = 0;
    for (const input of inputs) {
      const factor = f32(scale(input.node) / scale(node)), start = first;
      each(input.shape, (i, n, c, y, x) => {
        const steps = f32((input.data[i] - input.node.zero_point) * factor);
        out.data[at(out.shape, n, start + c, y, x)] = rounded(steps, node);
      });
      first += input.shape[1];
    }
    return out;
  },

  table(node, [input], tensors) {
    const out = tensor(input.shape, node), table = tensors[`${node.name}.table`].data;
    input.data.forEach((q, i) => { out.data[i] = table[q]; });
    return out;
  },

  clip: (node, [input]) => moved(node, input, input.shape, (i) => i),

  max_pool2d: (node, [input]) => pooled(node, input, (values) => within(Math.max(...values), node)),

  avg_pool2d: (node, [input]) =>
    pooled(node, input, (values, counted) => average(node, input, values, counted)),

  mean(node, [input]) {
    const [batch, channels, height, width] = input.shape, pixels = height * width;
    const out = tensor(node.keep_dimensions ? [batch, channels, 1, 1] : [batch, channels], node);
    out.data.forEach((_, i) => {
      const values = input.data.subarray(i * pixels, (i + 1) * pixels);
      out.data[i] = average(node, input, values, pixels);
    });
    return out;
  },

  channel_shuffle(node, [input]) {
    const parts = input.shape[1] / node.groups;
    return moved(node, input, input.shape, (_, n, c, y, x) =>
      at(input.shape, n, (c % node.groups) * parts + Math.floor(c / node.groups), y, x));
  },

  slice(node, [input]) {
    const shape = [input.shape[0], node.stop - node.start, ...input.shape.slice(2)];
    return moved(node, input, shape, (_, n, c, y, x) => at(input.shape, n, node.start + c, y, x));
  },

  pad(node, [input]) {
    const [batch, channels, height, width] = input.shape, [top, left, bottom, right] = node.padding;
    const shape = [batch, channels, height + top + bottom, width + left + right];
    return moved(node, input, shape, (_, n, c, y, x) => {
      const outside = y < top || x < left || y >= top + height || x >= left + width;
      return outside ? -1 : at(input.shape, n, c, y - top, x - left);
    });
  },

  flatten: (node, [input]) => moved(node, input, [input.shape[0], size(input.shape.slice(1))], (i) => i),

  reshape: (node, [input]) => moved(node, input, [input.shape[0], ...node.shape], (i) => i),
};

/** Combines two tensors element by element; sizes of 1 are repeated. */
function joined(node, inputs, combine) {
  const out = tensor(inputs[0].shape.map((n, i) => Math.max(n, inputs[1].shape[i])), node);
  each(out.shape, (i, ...place) => {
    const [a, b] = inputs.map((input) => ({
      steps: input.data[at(input.shape, ...place)] - input.node.zero_point, node: input.node,
    }));
    out.data[i] = rounded(combine(a, b), node);
  });
  return out;
}

/** Moves integers: `from` says where each comes from, or -1 for the zero point. */
function moved(node, input, shape, from) {
  const out = tensor(shape, node);
  each(shape, (i, ...place) => {
    const index = from(i, ...place);
    out.data[i] = within(index < 0 ? input.node.zero_point : input.data[index], node);
  });
  return out;
}

function average(node, input, values, counted) {
  const sum = values.reduce((total, q) => total + q - input.node.zero_point, 0);
  return rounded(f32(f32(sum) * f32(scale(input.node) / (scale(node) * counted))), node);
}

/** Calls back with the integers of each window, and how many pixels of it count. */
function pooled(node, input, reduce) {
  const dilation = node.dilation || [1, 1], sizes = input.shape.slice(2);
  const counts = sizes.map((n, axis) => {
    const [k, s, p, d] = [node.kernel, node.stride, node.padding, dilation].map((v) => v[axis]);
    const room = (n + 2 * p - d * (k - 1) - 1) / s;
    if (!node.ceil_mode) return Math.floor(room) + 1;
    const count = Math.ceil(room) + 1;
    return (count - 1) * s >= n + p ? count - 1 : count;
  });
  const out = tensor([...input.shape.slice(0, 2), ...counts], node);
  each(out.shape, (i, n, c, ...start) => {
    // Positions of the window along both axes: within the image, and within the padded image.
    const [[ys, tall], [xs, wide]] = start.map((position, axis) => {
      const first = position * node.stride[axis] - node.padding[axis];
      const all = Array.from({ length: node.kernel[axis] }, (_, k) => first + k * dilation[axis]);
      const inside = all.filter((v) => v >= 0 && v < sizes[axis]);
      return [inside, all.filter((v) => v < sizes[axis] + node.padding[axis]).length];
    });
    const values = ys.flatMap((y) => xs.map((x) => input.data[at(input.shape, n, c, y, x)]));
    out.data[i] = reduce(values, node.count_include_pad ? tall * wide : values.length);
  });
  return out;
}

// ---- The program ----

function run({ header, tensors }, images, see) {
  const values = { input: images };
  for (const node of header.nodes) {
    values[node.name] = OPERATIONS[node.op](node, node.inputs.map((name) => values[name]), tensors);
    see(node, values[node.name]);
  }
  return values[header.nodes.at(-1).name];
}

const [path, imagesPath, height, width, hashes] = process.argv.slice(2);
const artifact = readArtifact(path);
const bytes = Uint8Array.from(fs.readFileSync(imagesPath));
const images = { data: new Float32Array(bytes.buffer) };
images.shape = [images.data.length / (3 * height * width), 3, Number(height), Number(width)];
const logits = run(artifact, images, (node, { data }) => {
  if (hashes && node.scale) console.log(node.name, crypto.createHash("sha256").update(data).digest("hex"));
});
for (let n = 0, [batch, classes] = logits.shape; n < batch; n++) {
  const row = Array.from(logits.data.subarray(n * classes, (n + 1) * classes));
  const best = row.indexOf(Math.max(...row));
  console.log(Array.isArray(artifact.header.classes) ? artifact.header.classes[best] : best);
}
