// The answer of the view `flow`, prepared for drawing.
//
// Stage 0 of the residual stream is the embedding; stage 2 i + 1 is after attention of layer i, stage 2 i + 2 after its
// MLP.

const MEAN = "mean"; // of all heads

export class FlowData {
  constructor(answer) {
    Object.assign(this, answer);
    this.layerCount = answer.mlp.length;
    this.headCount = answer.patterns[0].length;
    this.stageCount = answer.stream.length;
    this.means = answer.patterns.map(meanPattern);
    // The largest shown value of each stage: its strongest color.
    this.largest = answer.stream.map((rows) => Math.max(1e-9, ...rows.flat().map(Math.abs)));
  }

  // The share of attention, from 0 to 1, that token `t` gives to token `s`: of one head, or the mean of all.
  share(layer, t, s, head = MEAN) {
    const pattern = head === MEAN ? this.means[layer] : this.patterns[layer][head];
    return pattern[t][s] / 1000;
  }

  // The tokens that `t` attends to with at least `minShare`, the largest share first: [{s, share}].
  sources(layer, t, minShare, head = MEAN) {
    const pattern = head === MEAN ? this.means[layer] : this.patterns[layer][head];
    return pattern[t]
      .map((thousandths, s) => ({ s, share: thousandths / 1000 }))
      .filter(({ share }) => share >= minShare)
      .sort((a, b) => b.share - a.share);
  }

  // How much the MLP of a layer adds to the stream of a token, relative to the stream's norm after it.
  mlpRatio(layer, t) {
    return this.mlp[layer][t] / Math.max(1e-9, this.norms[2 * layer + 2][t]);
  }

  label(id) {
    return this.vocabulary[id];
  }
}

function meanPattern(heads) {
  return heads[0].map((row, t) => row.map((_, s) => heads.reduce((sum, head) => sum + head[t][s], 0) / heads.length));
}
