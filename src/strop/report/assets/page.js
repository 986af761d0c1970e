// The page: which runs are shown, the tools above the curves, and news of runs that are still going on.

let book = JSON.parse(document.querySelector('#payload').textContent);
const NEWS_EVERY = 1500;  // milliseconds

function say(text) {
  document.querySelector('#status').textContent = text;
}

function showHeads() {
  const heads = book.runs.map((run, number) => {
    const name = book.runs.length > 1 ? make('h2', {style: `--run:${colour(number)}`, class: 'named'}, run.name) : null;
    const section = make('section', {class: 'head', hidden: !view.shown.has(number)}, name);
    const parts = make('div');
    parts.innerHTML = run.head + run.advice;  // made by strop, every text in it escaped
    section.append(parts);
    return section;
  });
  document.querySelector('#heads').replaceChildren(...heads);
}

function showRuns() {
  const nav = document.querySelector('#runs');
  nav.hidden = book.runs.length < 2;
  nav.replaceChildren(...book.runs.map((run, number) => {
    const change = event => {
      event.target.checked ? view.shown.add(number) : view.shown.delete(number);
      showHeads();
      showCharts();
      showSamples();
    };
    const box = make('input', {type: 'checkbox', checked: view.shown.has(number), onchange: change});
    return make('label', {style: `--run:${colour(number)}`}, box, ` ${run.name} `, make('small', {}, run.method));
  }));
}

function showTools() {
  const smooth = event => { view.smooth = Number(event.target.value); redraw(); };
  const log = event => { view.log = event.target.checked; redraw(); };
  const filter = event => { view.filter = event.target.value; showCharts(); };
  document.querySelector('#charts').replaceChildren(
    make('div', {class: 'tools'},
      control('Metric', make('input', {type: 'search', id: 'metric', oninput: filter})),
      control('Smoothing', make('input', {type: 'range', id: 'smoothing', min: 0, max: 0.99, step: 0.01, value: view.smooth, oninput: smooth})),
      control('Log scale', make('input', {type: 'checkbox', id: 'log', onchange: log})),
      make('button', {type: 'button', id: 'whole', onclick: () => zoom(null)}, 'Whole run'),
      make('details', {class: 'help'}, make('summary', {}, 'Keys'), make('p', {},
        'Drag over a curve to zoom, double-click to see the whole run, click to open the samples of a step. In a chart: ' +
        'arrows (with Shift: ten at once), Home and End read values; + and − zoom; 0 or Escape shows the whole run; ' +
        'Enter opens the samples. A triangle is an alarm; the green band is the healthy range.'))),
    make('div', {id: 'families'}));
}

// Take what a server says is new, and leave zoom, filters and what is open as they are.
function take(news) {
  const before = JSON.stringify([book.charts.map(chart => chart.keys), book.runs.map(run => run.name)]);
  book = news;
  const same = before === JSON.stringify([book.charts.map(chart => chart.keys), book.runs.map(run => run.name)]);
  if (!same) view.shown = shownAtFirst();
  showHeads();
  if (!same) { showRuns(); showCharts(); showSamples(); }
  else redraw();
  if (same && asked.offset === 0 && !document.querySelector('#groups')?.matches(':hover, :focus-within'))
    document.querySelector('#found') ? ask() : showSamples();
}

async function news() {
  try {
    const answer = await fetch(`data?since=${book.version ?? ''}`);
    if (answer.status === 200) take(await answer.json());
    document.body.classList.remove('lost');
  } catch {
    document.body.classList.add('lost');
    say('The server has gone; this is what it said last.');
  }
  setTimeout(news, NEWS_EVERY);
}

// All runs of one method; of several methods, whose curves mean different things, the last.
function shownAtFirst() {
  const numbers = book.runs.map((run, number) => number);
  return new Set(new Set(book.runs.map(run => run.method)).size > 1 ? numbers.slice(-1) : numbers);
}

view.shown = shownAtFirst();
showHeads();
showRuns();
showTools();
showCharts();
showSamples();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { showRuns(); showHeads(); redraw(); });
if (book.live) setTimeout(news, NEWS_EVERY);
