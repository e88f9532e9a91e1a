"use strict";
const { runs, looks, labels } = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const at = (id) => document.getElementById(id);
const unique = (values) => [...new Set(values)];
const chosen = (id) => new Set([...at(id).querySelectorAll("input:checked")].map((box) => box.value));
const spaced = (name) => labels[name] || name.replaceAll("_", " ");
let sorting = { column: null, down: false };

function bytes(count) {
  if (count === null) return "";
  const power = count < 1000 ? 0 : count < 999500 ? 1 : count < 999500000 ? 2 : 3;
  return `${Number((count / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
}

function boxes(id, values, on) {
  const before = new Set([...at(id).querySelectorAll("input")].map((box) => box.value));
  const checked = chosen(id);
  at(id).replaceChildren(...values.map((value) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = value;
    box.checked = before.has(String(value)) ? checked.has(String(value)) : on(value);
    label.append(box, ` ${String(value).replaceAll("_", " ")}`);
    return label;
  }));
}

const byNumber = (a, b) => (parseFloat(a) || 0) - (parseFloat(b) || 0) || (a < b ? -1 : 1);
const variantsOf = (some) => {
  const known = Object.keys(looks);
  const place = (name) => (known.includes(name) ? known.indexOf(name) : known.length);
  return unique(some.map((run) => run.variant)).sort((a, b) => place(a) - place(b));
};

function refreshChoices() {
  const experiments = chosen("experiment");
  const some = runs.filter((run) => experiments.has(run.experiment));
  boxes("variant", variantsOf(some), () => true);
  boxes("budget", unique(some.map((run) => run.budget)).sort(byNumber), () => true);
  boxes("seed", unique(some.map((run) => run.seed)).sort((a, b) => a - b), () => true);
  const columns = unique(some.flatMap((run) => Object.keys(run.columns)))
    .filter((name) => !["iteration", "seconds", "learning_rate"].includes(name));
  const usual = at("y").value || "train_loss";
  at("y").replaceChildren(...columns.map((name) => new Option(spaced(name), name)));
  at("y").value = columns.includes(usual) ? usual : columns[0] || "";
}

function groupsShown() {
  const [experiment, variant, budget, seed] = ["experiment", "variant", "budget", "seed"].map(chosen);
  const groups = new Map();
  for (const run of runs) {
    if (!experiment.has(run.experiment) || !variant.has(run.variant)) continue;
    if (!budget.has(run.budget) || !seed.has(String(run.seed))) continue;
    const own = [run.experiment, run.variant, run.budget, run.overrides];
    const key = JSON.stringify(at("single").checked ? [...own, run.seed] : own);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(run);
  }
  return [...groups.values()];
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const deviation = (values) => {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((a, b) => a + (b - middle) ** 2, 0) / (values.length - 1));
};
const last = (run, name) => {
  const values = (run.columns[name] || []).filter((value) => value !== null);
  return values.length ? values[values.length - 1] : null;
};

function curve(group, x, y) {
  const points = new Map();
  for (const run of group) {
    (run.columns[y] || []).forEach((value, i) => {
      if (value === null) return;
      const step = run.columns.iteration[i];
      if (!points.has(step)) points.set(step, { x: [], y: [] });
      points.get(step).x.push(run.columns[x][i]);
      points.get(step).y.push(value);
    });
  }
  const whole = [...points.entries()].filter(([, each]) => each.y.length === group.length);
  whole.sort(([a], [b]) => a - b);
  const values = whole.map(([, each]) => each);
  return {
    x: values.map((each) => mean(each.x)),
    y: values.map((each) => mean(each.y)),
    low: values.map((each) => Math.min(...each.y)),
    high: values.map((each) => Math.max(...each.y)),
  };
}

function explained(group) {
  const run = group[0];
  const lines = [`<b>${run.variant.replaceAll("_", " ")}</b>, ${run.experiment}`];
  lines.push(`budget ${run.budget}${run.overrides ? `, ${run.overrides}` : ""}`);
  const keep = run.keep === null ? "" : `, keep ${run.keep}`;
  const bits = run.bits === null ? "" : `, ${run.bits} bits`;
  lines.push(`batch ${run.batch}${keep}${bits}`);
  lines.push(`saved ${bytes(run.saved)}, parameters ${bytes(run.parameters)}, peak ${bytes(run.peak)}`);
  for (const [key, value] of Object.entries(run.notes)) lines.push(`${key} ${value}`);
  lines.push(`seed ${group.map((each) => each.seed).join(", ")}`);
  return lines.join("<br>");
}

function label(group, several) {
  const run = group[0];
  const words = [run.variant.replaceAll("_", " ")];
  if (run.budget !== "full") words.push(run.budget);
  const overrides = run.overrides.split(",").filter((each) => each && !each.startsWith("scale="));
  words.push(...overrides);
  if (several) words.push(`(${run.experiment})`);
  if (at("single").checked) words.push(`s${run.seed}`);
  return words.join(" ");
}

function look(group, kinds) {
  const run = group[0];
  const [color, symbol] = looks[run.variant] || ["#777777", "circle-open"];
  const kind = kinds.indexOf(`${run.experiment} ${run.budget} ${run.overrides}`);
  return { color, symbol, dash: DASHES[Math.max(0, kind) % DASHES.length] };
}

const faded = (color) => `${color}26`;

function traces(groups, x, y) {
  const several = chosen("experiment").size > 1;
  const kinds = unique(groups.map(([run]) => run).filter((run) => run.budget !== "full")
    .map((run) => `${run.experiment} ${run.budget} ${run.overrides}`));
  return groups.flatMap((group) => {
    const { color, symbol, dash } = look(group, kinds);
    const common = { name: label(group, several), legendgroup: label(group, several) };
    const hover = `${explained(group)}<br><b>%{y:.4g}</b> at %{x:.4g}<extra></extra>`;
    if (x === "saved") {
      const values = group.map((run) => last(run, y)).filter((value) => value !== null);
      if (!values.length) return [];
      const middle = mean(values);
      return [{
        ...common, x: [group[0].saved], y: [middle], mode: "markers", hovertemplate: hover,
        marker: { color, symbol, size: 10 },
        error_y: {
          type: "data", symmetric: false, color, thickness: 1,
          array: [Math.max(...values) - middle], arrayminus: [middle - Math.min(...values)],
        },
      }];
    }
    const { x: across, y: up, low, high } = curve(group, x, y);
    if (!across.length) return [];
    const line = {
      ...common, x: across, y: up, mode: "lines+markers", hovertemplate: hover,
      line: { color, width: 2, dash }, marker: { color, symbol, size: 6, maxdisplayed: 12 },
    };
    if (group.length < 2) return [line];
    const band = {
      legendgroup: common.legendgroup, showlegend: false, hoverinfo: "skip", mode: "lines",
      x: [...across, ...across.slice().reverse()], y: [...high, ...low.slice().reverse()],
      fill: "toself", fillcolor: faded(color), line: { width: 0 },
    };
    return [band, line];
  });
}

function cells(group) {
  const run = group[0];
  const spread = (name, factor, digits) => {
    const values = group.map((each) => last(each, name)).filter((value) => value !== null);
    if (!values.length) return ["", null];
    const [middle, wide] = [mean(values) * factor, deviation(values)];
    const shown = Number(middle.toPrecision(digits));
    return [wide === null ? `${shown}` : `${shown} ± ${Number((wide * factor).toPrecision(2))}`, middle];
  };
  const accuracy = spread("test_accuracy", 100, 4);
  return [
    [run.experiment, run.experiment], [run.variant.replaceAll("_", " "), run.variant],
    [run.budget, parseFloat(run.budget) || 2], [run.overrides, run.overrides],
    [run.batch, run.batch], [run.keep ?? "", run.keep], [run.bits ?? "", run.bits],
    [bytes(run.saved), run.saved], [bytes(run.peak), run.peak],
    spread("train_loss", 1, 3), spread("test_loss", 1, 3), accuracy,
    [group.length, group.length],
  ];
}
const HEAD = ["experiment", "variant", "budget", "overrides", "batch", "keep", "bits", "saved", "peak",
  "training loss", "test loss", "test accuracy %", "seeds"];

function table(groups) {
  const head = document.createElement("tr");
  HEAD.forEach((name, column) => {
    const cell = document.createElement("th");
    const arrow = sorting.column === column ? (sorting.down ? " ↓" : " ↑") : "";
    cell.textContent = name + arrow;
    cell.className = column < 4 ? "words" : "";
    cell.onclick = () => {
      sorting = { column, down: sorting.column === column && !sorting.down };
      draw();
    };
    head.append(cell);
  });
  const rows = groups.map(cells);
  if (sorting.column !== null) {
    const sign = sorting.down ? -1 : 1;
    rows.sort((a, b) => {
      const [one, other] = [a[sorting.column][1], b[sorting.column][1]];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * (one < other ? -1 : one > other ? 1 : 0);
    });
  }
  at("table").tHead.replaceChildren(head);
  at("table").tBodies[0].replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    row.forEach(([text], column) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.className = column < 4 ? "words" : "";
      line.append(cell);
    });
    return line;
  }));
}

function draw() {
  const groups = groupsShown();
  const [x, y] = [at("x").value, at("y").value];
  const shown = traces(groups, x, y);
  const log = at("log").checked && y.endsWith("loss");
  const across = x === "saved" ? "saved for backward, bytes" : spaced(x);
  Plotly.react("plot", shown, {
    margin: { l: 70, r: 10, t: 36, b: 50 }, hovermode: "closest", hoverlabel: { align: "left" },
    xaxis: { title: { text: across }, type: x === "saved" ? "log" : "linear",
      exponentformat: "SI", automargin: true, zeroline: false },
    yaxis: { title: { text: x === "saved" ? `final ${spaced(y)}` : spaced(y) },
      type: log ? "log" : "linear", automargin: true },
    legend: { orientation: "v" }, uirevision: `${x} ${y} ${log}`,
  }, { responsive: true, displaylogo: false });
  const count = groups.reduce((sum, group) => sum + group.length, 0);
  at("note").textContent = `${count} of ${runs.length} runs; click a heading of the table to sort by it.`;
  table(groups);
}

const experiments = unique(runs.map((run) => run.experiment));
const first = experiments.find((name) => name.startsWith("fig")) || experiments[0];
boxes("experiment", experiments, (name) => name === first);
at("controls").addEventListener("change", (event) => {
  if (event.target.closest("#experiment")) refreshChoices();
  draw();
});
refreshChoices();
draw();
