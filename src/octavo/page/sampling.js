// From logits to the probabilities that a token is sampled with: temperature, top-k and top-p as
// octavo/generation/sampling.py has them. Nothing here asks the server.
//
// At every setting the tokens that remain are a prefix of one order, by falling probability. So the logits are sorted
// once, and a change of a setting costs one pass.

export class TokenDistribution {
  constructor(logits) {
    this.logits = Float64Array.from(logits);
    this.order = Uint32Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b);
    this.probabilities = softmax(this.order, this.logits); // at temperature 1, in that order
  }

  get size() {
    return this.order.length;
  }

  // {probabilities, covered}: the probabilities of the tokens that can be sampled, in the order; and what these have
  // together at temperature 1.
  shape({ temperature = 1, topK = 0, topP = 1 } = {}) {
    const { order, logits, probabilities: unshaped } = this;
    if (temperature < 1e-6) return { probabilities: Float64Array.of(1), covered: unshaped[0] }; // greedy
    let count = order.length;
    if (topK > 0 && topK < count) {
      const threshold = logits[order[topK - 1]];
      for (count = topK; count < order.length && logits[order[count]] === threshold;) count++; // equal logits stay
    }
    let probabilities = softmax(order.subarray(0, count), logits, temperature);
    if (topP < 1) {
      let total = 0;
      for (count = 0; count < probabilities.length && total < topP;) total += probabilities[count++];
      probabilities = probabilities.slice(0, count).map((probability) => probability / total);
    }
    let covered = 0;
    for (let i = 0; i < count; i++) covered += unshaped[i];
    return { probabilities, covered: Math.min(covered, 1) };
  }

  // A token's rank, from 1, and its probability at temperature 1.
  lookUp(id) {
    const at = this.order.indexOf(id);
    return { rank: at + 1, probability: this.probabilities[at] };
  }

  // The token id for a random number from 0 up to 1.
  sample(settings, random) {
    const { probabilities } = this.shape(settings);
    let at = 0;
    for (let sum = probabilities[0]; sum <= random && at < probabilities.length - 1; sum += probabilities[at]) at++;
    return this.order[at];
  }

  // All probabilities at temperature 1, by token id.
  byId() {
    const probabilities = new Float64Array(this.size);
    this.order.forEach((id, i) => (probabilities[id] = this.probabilities[i]));
    return probabilities;
  }
}

// The probabilities of token ids, the first of which has the largest logit, so that no power overflows.
function softmax(ids, logits, temperature = 1) {
  const max = logits[ids[0]] / temperature;
  const powers = Float64Array.from(ids, (id) => Math.exp(logits[id] / temperature - max));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// The Kullback-Leibler divergence of q from p, in nats: the mean of ln(p / q) under p.
export function klDivergence(p, q) {
  let sum = 0;
  for (let id = 0; id < p.length; id++) if (p[id] > 0) sum += p[id] * Math.log(p[id] / Math.max(q[id], 1e-300));
  return p.every((probability, id) => probability === q[id]) ? 0 : Math.max(sum, 0);
}
