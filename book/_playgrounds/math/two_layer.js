// A network with one hidden layer of rectifiers, as a cloud of neurons z = (w, b, a).

/** f(x) = (1/n) Σ a max(w x + b, 0). */
export function network(neurons, x) {
  let total = 0;
  for (const [w, b, a] of neurons) total += a * Math.max(w * x + b, 0);
  return total / neurons.length;
}

/** The loss ½ mean (f(x) − y)² over data [x, y]. */
export function loss(neurons, data) {
  let total = 0;
  for (const [x, y] of data) total += (network(neurons, x) - y) ** 2;
  return total / (2 * data.length);
}

/**
 * The velocity of every neuron, minus n times the gradient of the loss: with the residual r(x) = f(x) − y,
 * v_(w,b) = −mean r a 1[w x + b > 0] (x, 1) and v_a = −mean r max(w x + b, 0).
 */
export function velocity(neurons, data) {
  const residuals = data.map(([x, y]) => (network(neurons, x) - y) / data.length);
  return neurons.map(([w, b, a]) => {
    const v = [0, 0, 0];
    data.forEach(([x], k) => {
      const input = w * x + b;
      if (input <= 0) return;
      v[0] -= residuals[k] * a * x;
      v[1] -= residuals[k] * a;
      v[2] -= residuals[k] * input;
    });
    return v;
  });
}

/** One step of gradient descent, in the rescaled time in which the speed does not depend on n. */
export function train(neurons, data, step) {
  const v = velocity(neurons, data);
  return neurons.map((z, i) => z.map((value, k) => value + step * v[i][k]));
}
