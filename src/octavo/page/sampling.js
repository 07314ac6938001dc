// What each token is drawn with: octavo/generation/sampling.py's temperature, top-k and top-p, on logits that are here.
//
// Whatever the sliders say, the tokens that stay are the beginning of one order, the likeliest first. So the logits are
// sorted once, and a slider that moves costs one pass.

export class Odds {
  constructor(logits) {
    this.logits = Float64Array.from(logits);
    this.order = Uint32Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b);
    this.own = softmax(this.order, this.logits, 1); // the model's own, at temperature 1, in that order
  }

  get size() {
    return this.order.length;
  }

  // The chances, in the order, of the tokens that may be drawn: they sum to 1. `covered` is what the model itself, at
  // temperature 1, gives all of these.
  shaped({ temperature = 1, topK = 0, topP = 1 } = {}) {
    const { order, logits, own } = this;
    if (temperature < 1e-6) return { chances: Float64Array.of(1), covered: own[0] }; // always the likeliest
    let count = order.length;
    if (topK > 0 && topK < count) {
      const least = logits[order[topK - 1]];
      for (count = topK; count < order.length && logits[order[count]] === least;) count++; // equals stay together
    }
    let chances = softmax(order.subarray(0, count), logits, temperature);
    if (topP < 1) {
      let before = 0;
      for (count = 0; count < chances.length && before < topP;) before += chances[count++];
      chances = chances.slice(0, count).map((chance) => chance / before);
    }
    let covered = 0;
    for (let at = 0; at < count; at++) covered += own[at];
    return { chances, covered: Math.min(covered, 1) };
  }

  // A token's rank from 1, and its probability at temperature 1.
  standing(id) {
    const at = this.order.indexOf(id);
    return { rank: at + 1, probability: this.own[at] };
  }

  // An id by its chance, where `chance` is a number from 0 up to 1 that is drawn elsewhere.
  drawn(settings, chance) {
    const { chances } = this.shaped(settings);
    let at = 0;
    for (let sum = chances[0]; sum <= chance && at < chances.length - 1; sum += chances[at]) at++;
    return this.order[at];
  }
}

function softmax(ids, logits, temperature) {
  const most = logits[ids[0]] / temperature; // the first is the largest, so nothing overflows
  const chances = Float64Array.from(ids, (id) => Math.exp(logits[id] / temperature - most));
  const sum = chances.reduce((a, b) => a + b, 0);
  return chances.map((chance) => chance / sum);
}

// The probabilities of all tokens by id, at temperature 1.
export function probabilities(logits) {
  const odds = new Odds(logits);
  const found = new Float64Array(logits.length);
  odds.order.forEach((id, at) => (found[id] = odds.own[at]));
  return found;
}

// How far apart two distributions are, in nats, seen from the first: the mean of ln(p / q) over what p expects.
export function divergence(p, q) {
  let sum = 0;
  for (let id = 0; id < p.length; id++) if (p[id] > 0) sum += p[id] * Math.log(p[id] / Math.max(q[id], 1e-300));
  return p.every((each, id) => each === q[id]) ? 0 : Math.max(sum, 0);
}
