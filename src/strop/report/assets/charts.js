// Charts: one for each entry of the payload, drawn by uPlot when it comes into view. All share zoom, cursor,
// smoothing and scale; a curve's colour is its run's where several runs are shown, else its own.

const view = {smooth: 0, log: false, zoom: null, shown: new Set(), filter: ''};
const drawn = [];  // charts in the page: {box, chart, plot, curves, readout}
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2]];

const css = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const colour = number => css('c' + number % 8);

// An element with attributes and children; text is always text.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}

function short(value) {
  if (value == null || !isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1e12 || size < 1e-3) return Number(value.toPrecision(3)).toExponential().replace('e+', 'e');
  for (const [bound, letter] of [[1e9, 'G'], [1e6, 'M'], [1e4, 'k']])
    if (size >= bound) return Number((value / (letter === 'k' ? 1e3 : bound)).toPrecision(3)) + letter;
  return String(Number(value.toPrecision(4)));
}

// Exponential moving average, without the usual pull of the first value.
function smoothed(values, keep) {
  let total = 0, weight = 0;
  return values.map(value => {
    if (value == null) return value;
    total = keep * total + value;
    weight = keep * weight + 1;
    return total / weight;
  });
}

// The curves of a chart in the runs that are shown: [{label, stroke, dash, points: [steps, values], raw}].
function curvesOf(chart) {
  const runs = book.runs.map((run, number) => [run, number]).filter(([, number]) => view.shown.has(number));
  const own = [...new Set(chart.keys.map(key => key.replace(/^eval_/, '')))];
  const found = [];
  for (const [run, number] of runs) {
    for (const key of chart.keys) {
      if (!run.curves[key]) continue;
      const evaluation = key.startsWith('eval_'), place = own.indexOf(key.replace(/^eval_/, ''));
      const name = own.length > 1 || evaluation ? key : '';
      found.push({
        key, run: number, evaluation, points: run.curves[key],
        label: [runs.length > 1 ? run.name : '', name].filter(Boolean).join(' ') || key,
        stroke: colour(runs.length > 1 ? number : evaluation ? place + 1 : place),
        dash: runs.length > 1 ? DASHES[place % DASHES.length] : [],
      });
    }
  }
  return found;
}

// All steps of some curves in order, and each curve's values at them; undefined where it has none.
function table(curves) {
  const steps = [...new Set(curves.flatMap(curve => curve.points[0]))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const columns = curves.map(curve => {
    const column = new Array(steps.length);
    curve.points[0].forEach((step, index) => { column[place.get(step)] = curve.points[1][index]; });
    return column;
  });
  return [steps, ...columns];
}

function dataOf(entry) {
  const [steps, ...columns] = table(entry.curves);
  if (!view.smooth) return [steps, ...columns];
  return [steps, ...columns, ...columns.map(column => smoothed(column, view.smooth))];
}

function seriesOf(curve, faint) {
  return {
    stroke: faint ? curve.stroke + '55' : curve.stroke, width: faint ? 1 : 1.8, dash: curve.dash,
    points: {show: curve.points[0].length === 1 || (curve.evaluation && curve.points[0].length < 60), size: 6},
  };
}

// A range that holds the curves, and a healthy bound that is close by.
function rangeOf(chart) {
  return (plot, low, high) => {
    if (low == null) return [0, 1];
    const span = high - low || Math.abs(high) || 1;
    for (const bound of [chart.low, chart.high, chart.limit]) {
      if (bound == null || bound < low - span / 2 || bound > high + span / 2) continue;
      low = Math.min(low, bound);
      high = Math.max(high, bound);
    }
    const pad = 0.07 * (high - low || Math.abs(high) || 1);
    return [low >= 0 && low < pad ? 0 : low - pad, high + pad];
  };
}

// Below the curves: the healthy range as a band, its bounds and the limit of the alarm as lines; the steps of alarms.
function background(chart, alarms) {
  return plot => {
    const {ctx, bbox} = plot, {min, max} = plot.scales.y;
    const y = value => plot.valToPos(Math.min(Math.max(value, min), max), 'y', true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    if (chart.low != null || chart.high != null) {
      const top = y(chart.high ?? max), bottom = y(chart.low ?? min);
      ctx.fillStyle = css('band-back');
      ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    }
    ctx.setLineDash([4, 5]);
    for (const [bound, name] of [[chart.low, 'band'], [chart.high, 'band'], [chart.limit, 'alarm']]) {
      if (bound == null || bound <= min || bound >= max) continue;
      ctx.strokeStyle = css(name);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y(bound));
      ctx.lineTo(bbox.left + bbox.width, y(bound));
      ctx.stroke();
    }
    ctx.setLineDash([]);
    ctx.strokeStyle = ctx.fillStyle = css('alarm');
    for (const {step} of alarms) {
      const x = plot.valToPos(step, 'x', true), size = 5 * devicePixelRatio;
      ctx.globalAlpha = 0.5;
      ctx.fillRect(x - 0.5, bbox.top, 1, bbox.height);
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top);
      ctx.lineTo(x + size, bbox.top);
      ctx.lineTo(x, bbox.top + 1.6 * size);
      ctx.fill();
    }
    ctx.restore();
  };
}

function alarmsOf(chart) {
  return book.runs.flatMap((run, number) => view.shown.has(number) ? run.alarms : [])
    .filter(alarm => alarm.keys.some(key => chart.keys.includes(key)))
    .flatMap(alarm => alarm.steps.map(step => ({step, text: `${alarm.kind}: ${alarm.text}`})));
}

// What stands below a chart: each curve with its colour and its value at the cursor, or its last one.
function tell(entry, index) {
  const {plot, curves, readout, alarms} = entry;
  const steps = plot.data[0], offset = view.smooth ? curves.length : 0;
  const at = index ?? steps.length - 1;
  const items = curves.map((curve, number) => {
    let place = at;
    while (place > 0 && plot.data[1 + offset + number][place] == null) place--;
    const value = plot.data[1 + offset + number][place];
    const mark = make('i', {style: `background:${curve.stroke}`});
    return make('span', {}, mark, `${curve.label} `, make('b', {}, short(value)));
  });
  const near = alarms.find(alarm => Math.abs(plot.valToPos(alarm.step, 'x') - plot.valToPos(steps[at], 'x')) < 6);
  const told = index != null && near ? make('em', {}, near.text) : null;
  readout.replaceChildren(make('span', {class: 'step'}, `step ${steps[at]?.toLocaleString('en') ?? '–'}`), ...items,
    ...(told ? [told] : []));
}

let zooming = false;
function zoom(range) {
  view.zoom = range;
  zooming = true;
  for (const {plot} of drawn) if (plot) plot.setScale('x', range ? {min: range[0], max: range[1]} : whole(plot));
  zooming = false;
  document.body.classList.toggle('zoomed', range != null);
}

// All steps; one alone has room on either side, since uPlot looks for ticks of a range without width for ever.
function whole(plot) {
  const steps = plot.data[0], first = steps[0], last = steps[steps.length - 1], room = first === last ? 0.5 : 0;
  return {min: first - room, max: last + room};
}

function draw(entry) {
  const {box, chart} = entry;
  entry.plot?.destroy();
  entry.curves = curvesOf(chart);
  entry.alarms = alarmsOf(chart);
  const data = dataOf(entry);
  const positive = data.slice(1).every(column => column.every(value => value == null || value > 0));
  const raw = entry.curves.map(curve => seriesOf(curve, view.smooth > 0));
  const soft = view.smooth ? entry.curves.map(curve => seriesOf(curve, false)) : [];
  const axis = {stroke: css('soft'), grid: {stroke: css('grid'), width: 1}, ticks: {stroke: css('grid'), size: 4}};
  const log = view.log && positive;
  entry.plot = new uPlot({
    width: box.clientWidth, height: 190, legend: {show: false}, padding: [10, 12, 0, 0],
    cursor: {sync: {key: 'strop', scales: ['x', null]}, drag: {x: true, y: false}, focus: {prox: 24}},
    focus: {alpha: 0.35},
    scales: {x: {time: false}, y: log ? {distr: 3} : {range: rangeOf(chart)}},
    axes: [
      {...axis, size: 28, font: '11px system-ui', values: (plot, ticks) => ticks.map(short)},
      {...axis, size: 52, font: '11px system-ui', values: (plot, ticks) => ticks.map(t => t == null ? '' : short(t))},
    ],
    series: [{}, ...raw, ...soft],
    hooks: {
      drawClear: [background(chart, entry.alarms)],
      setCursor: [plot => tell(entry, plot.cursor.idx)],
      setScale: [(plot, key) => {
        if (key !== 'x' || zooming || !entry.plot) return;
        const {min, max} = plot.scales.x, all = whole(plot);
        zoom(min <= all.min && max >= all.max ? null : [min, max]);
      }],
    },
  }, data, box);
  if (view.zoom) {
    zooming = true;
    entry.plot.setScale('x', {min: view.zoom[0], max: view.zoom[1]});
    zooming = false;
  }
  entry.plot.over.addEventListener('click', () => openStep(entry));
  box.setAttribute('aria-label', summary(entry));
  tell(entry, null);
}

// A chart in words, for who hears it.
function summary({chart, curves}) {
  const told = curves.map(({label, points: [steps, values]}) => {
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    const ends = `from ${short(values[0])} at step ${steps[0]} to ${short(values.at(-1))} at step ${steps.at(-1)}`;
    return `${label}: ${ends}, lowest ${short(low)}, highest ${short(high)}`;
  });
  return `Chart of ${chart.title}. ${told.join('. ')}. Arrow keys read values, Enter opens the samples of a step.`;
}

function openStep(entry) {
  const {plot} = entry, index = plot.cursor.idx;
  if (index != null) showSamplesOf(plot.data[0][index]);
}

function keys(entry, event) {
  const {plot} = entry;
  if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = plot.data[0], last = steps.length - 1, now = plot.cursor.idx ?? last;
  const {min, max} = plot.scales.x, middle = steps[now], half = (max - min) / 2;
  const moves = {ArrowLeft: now - (event.shiftKey ? 10 : 1), ArrowRight: now + (event.shiftKey ? 10 : 1), Home: 0, End: last};
  if (event.key in moves) {
    const index = Math.min(Math.max(moves[event.key], 0), last);
    plot.setCursor({left: plot.valToPos(steps[index], 'x'), top: plot.over.clientHeight / 2});
    tell(entry, index);
    say(entry.readout.textContent);
  } else if (event.key === '+') zoom([middle - Math.max(half, 1) / 2, middle + Math.max(half, 1) / 2]);
  else if (event.key === '-') zoom([middle - 2 * half, middle + 2 * half]);
  else if (event.key === 'Escape' || event.key === '0') zoom(null);
  else if (event.key === 'Enter') openStep(entry);
  else return;
  event.preventDefault();
}

const seen = new IntersectionObserver(changes => {
  for (const {target, isIntersecting} of changes) {
    const entry = drawn.find(each => each.box === target);
    if (isIntersecting && entry && !entry.plot && target.clientWidth) draw(entry);
  }
}, {rootMargin: '300px'});
const sized = new ResizeObserver(changes => {
  for (const {target} of changes) {
    const entry = drawn.find(each => each.box === target);
    if (entry?.plot && target.clientWidth && target.clientWidth !== entry.plot.width)
      entry.plot.setSize({width: target.clientWidth, height: 190});
  }
});

function card(chart) {
  const box = make('div', {class: 'plot', tabindex: 0, role: 'group', 'aria-roledescription': 'chart', 'aria-label': chart.title});
  const readout = make('div', {class: 'readout'});
  const entry = {box, chart, readout, plot: null};
  box.addEventListener('keydown', event => keys(entry, event));
  drawn.push(entry);
  seen.observe(box);
  sized.observe(box);
  const about = [chart.about, chart.measure && `(${chart.measure})`].filter(Boolean).join(' ');
  return make('figure', {}, make('figcaption', {}, make('h4', {}, chart.title)), box, readout,
    make('details', {class: 'about'}, make('summary', {}, chart.healthy ? `healthy: ${chart.healthy}` : 'what it is'),
      make('p', {}, about || 'Not in the glossary: a metric of your own.'), chart.advice ? make('p', {}, chart.advice) : null));
}

function showCharts() {
  drawn.splice(0).forEach(({plot, box}) => { plot?.destroy(); seen.unobserve(box); sized.unobserve(box); });
  const wanted = view.filter.toLowerCase();
  const logged = chart => chart.keys.some(key => book.runs.some((run, n) => view.shown.has(n) && run.curves[key]));
  const named = chart => `${chart.title} ${chart.keys.join(' ')}`.toLowerCase().includes(wanted);
  const families = new Map();
  for (const chart of book.charts.filter(each => logged(each) && named(each)))
    families.set(chart.family, [...(families.get(chart.family) ?? []), card(chart)]);
  const parts = [...families].map(([family, cards]) =>
    make('details', {class: 'family', open: true}, make('summary', {}, make('h3', {}, family)), make('div', {class: 'charts'}, ...cards)));
  document.querySelector('#families').replaceChildren(...(parts.length ? parts : [make('p', {}, 'No metrics were logged.')]));
}

addEventListener('beforeprint', () => drawn.forEach(entry => entry.plot || draw(entry)));

function redraw() {
  for (const entry of drawn) if (entry.plot) draw(entry);
}
