// Turns logits into the probabilities that a token is sampled with: temperature, top-k and top-p, as in
// octavo/generation/sampling.py. Nothing here asks the server.
//
// At every setting the remaining tokens are a prefix of the tokens sorted by descending probability. So the logits are
// sorted once, and a change of a setting costs one pass.

export class TokenDistribution {
  constructor(logits) {
    this.logits = Float64Array.from(logits);
    // All token ids, by descending probability.
    this.order = Uint32Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b);
    this.probabilities = softmax(this.order, this.logits); // at temperature 1, in the same order
  }

  get size() {
    return this.order.length;
  }

  // {probabilities, covered}: the probabilities of the tokens that can be sampled, in `this.order`; and the sum of the
  // probabilities that the same tokens have at temperature 1.
  applySettings({ temperature = 1, topK = 0, topP = 1 } = {}) {
    const { order, logits, probabilities: original } = this;
    if (temperature < 1e-6) return { probabilities: Float64Array.of(1), covered: original[0] }; // greedy
    let count = order.length;
    if (topK > 0 && topK < count) {
      const threshold = logits[order[topK - 1]];
      count = topK;
      while (count < order.length && logits[order[count]] === threshold) count++; // ties with the k-th logit are kept
    }
    let probabilities = softmax(order.subarray(0, count), logits, temperature);
    if (topP < 1) {
      let total = 0;
      count = 0;
      while (count < probabilities.length && total < topP) total += probabilities[count++];
      probabilities = probabilities.slice(0, count).map((probability) => probability / total);
    }
    let covered = 0;
    for (let i = 0; i < count; i++) covered += original[i];
    return { probabilities, covered: Math.min(covered, 1) };
  }

  // A token's rank, from 1, and its probability at temperature 1.
  lookUp(id) {
    const index = this.order.indexOf(id);
    return { rank: index + 1, probability: this.probabilities[index] };
  }

  // The token id for a random number from 0 up to 1.
  sample(settings, random) {
    const { probabilities } = this.applySettings(settings);
    let index = 0;
    let sum = probabilities[0];
    while (sum <= random && index < probabilities.length - 1) sum += probabilities[++index];
    return this.order[index];
  }

  // All probabilities at temperature 1, by token id.
  byId() {
    const probabilities = new Float64Array(this.size);
    this.order.forEach((id, i) => (probabilities[id] = this.probabilities[i]));
    return probabilities;
  }
}

// The probabilities of token ids. The first id has the largest logit; subtracting it keeps exp() from overflowing.
function softmax(ids, logits, temperature = 1) {
  const max = logits[ids[0]] / temperature;
  const exponentials = Float64Array.from(ids, (id) => Math.exp(logits[id] / temperature - max));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((exponential) => exponential / sum);
}

// The Kullback-Leibler divergence of q from p, in nats: the mean of ln(p / q) under p.
export function klDivergence(p, q) {
  let sum = 0;
  for (let id = 0; id < p.length; id++) if (p[id] > 0) sum += p[id] * Math.log(p[id] / Math.max(q[id], 1e-300));
  return p.every((probability, id) => probability === q[id]) ? 0 : Math.max(sum, 0);
}
