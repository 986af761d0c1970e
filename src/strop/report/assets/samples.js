// Samples: search, a histogram of rewards whose bars filter, and groups of completions side by side. Where a server
// pages them it is asked; else the samples in the page are, in the same way (find in samples.py).

const BINS = 20, PAGE = 12;
const asked = {text: '', step: '', by: 'reward', bars: new Set(), order: 'newest', offset: 0};

function shownRuns() {
  return book.runs.map((run, number) => number).filter(number => view.shown.has(number));
}

async function find() {
  if (!book.live) return findHere(shownRuns().flatMap(number => book.runs[number].samples));
  const query = new URLSearchParams({...asked, bars: [...asked.bars].join(), runs: shownRuns().join()});
  const answer = await fetch(`samples?${query}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function findHere(rows) {
  const wanted = asked.text.toLowerCase(), by = asked.by;
  rows = rows.filter(row => asked.step === '' || row.step === Number(asked.step));
  rows = rows.filter(row => !wanted || `${row.prompt}\n${row.completion}`.toLowerCase().includes(wanted));
  const values = rows.filter(row => by in row.rewards).map(row => row.rewards[by]);
  const low = values.reduce((a, b) => Math.min(a, b), values[0]), high = values.reduce((a, b) => Math.max(a, b), values[0]);
  const bar = value => high > low ? Math.min(Math.floor((value - low) / (high - low) * BINS), BINS - 1) : 0;
  const counts = new Array(BINS).fill(0);
  values.forEach(value => counts[bar(value)]++);
  if (asked.bars.size) rows = rows.filter(row => by in row.rewards && asked.bars.has(bar(row.rewards[by])));
  const several = new Set(rows.map(row => row.run)).size > 1, groups = new Map();
  for (const row of rows) {
    const name = several ? row.prompt : JSON.stringify([row.prompt, row.step]);
    groups.set(name, [...(groups.get(name) ?? []), row]);
  }
  const sign = asked.order === 'best' ? -1 : 1;
  const rate = asked.order === 'newest' ? group => -Math.max(...group.map(row => row.step))
    : group => Math.min(...group.filter(row => by in row.rewards).map(row => sign * row.rewards[by]));
  const rated = [...groups.values()].map(group => [rate(group), group]).filter(([rating]) => isFinite(rating));
  const ordered = rated.sort(([a], [b]) => a - b).map(([, group]) => group);
  return {
    total: rows.length, bars: values.length ? {low, high, counts} : null,
    groups: ordered.slice(asked.offset, asked.offset + PAGE), more: ordered.length > asked.offset + PAGE,
  };
}

// The text, with what was searched for marked.
function marked(text) {
  const box = make('pre', {tabindex: text.length > 600 ? 0 : null});
  const wanted = asked.text.toLowerCase(), lower = text.toLowerCase();
  if (!wanted || lower.length !== text.length) return box.append(text), box;
  let from = 0;
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    box.append(text.slice(from, at), make('mark', {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  box.append(text.slice(from));
  return box;
}

function completion(row, several) {
  const rewards = Object.entries(row.rewards).map(([name, value]) => make('span', {class: 'score'}, `${name} `, make('b', {}, short(value))));
  const notes = Object.entries(row.notes).map(([name, value]) =>
    make('span', {}, `${name} `, make('b', {}, value.length > 12 && isFinite(value) ? short(Number(value)) : value)));
  const when = several ? make('span', {}, `step ${row.step}`) : null;
  return make('div', {class: 'completion'}, marked(row.completion), make('p', {}, when, ...rewards, ...notes));
}

// A prompt and its completions: of one run at one step side by side, best first; of several runs a column for each.
function groupOf(rows) {
  const runs = [...new Set(rows.map(row => row.run))].sort((a, b) => a - b), several = runs.length > 1;
  const ordered = [...rows].sort((a, b) => b.step - a.step || (b.rewards[asked.by] ?? 0) - (a.rewards[asked.by] ?? 0));
  const lanes = runs.map(run => make('div', {class: 'lane'}, make('h5', {style: `--run:${colour(run)}`, class: 'named'}, book.runs[run].name),
    ...ordered.filter(row => row.run === run).map(row => completion(row, true))));
  const parts = several ? lanes : ordered.map(row => completion(row, false));
  return make('article', {}, several ? null : make('h4', {}, `step ${rows[0].step}`), marked(rows[0].prompt), make('div', {class: 'group'}, ...parts));
}

function histogram(bars) {
  if (!bars) return make('p', {class: 'soft'}, 'No sample here has a number from a reward.');
  const most = Math.max(...bars.counts), width = (bars.high - bars.low) / BINS;
  const buttons = bars.counts.map((count, number) => {
    const [from, to] = [bars.low + number * width, bars.low + (number + 1) * width].map(short);
    const said = `${asked.by} ${from} to ${to}: ${count.toLocaleString('en')} completions`;
    return make('button', {
      type: 'button', title: said, 'aria-label': said, 'aria-pressed': String(asked.bars.has(number)), disabled: !count,
      style: `--share:${count ? Math.max(count / most, 0.03) : 0}`,
      onclick: () => {
        asked.bars.has(number) ? asked.bars.delete(number) : asked.bars.add(number);
        ask().then(() => document.querySelectorAll('#histogram button')[number]?.focus());
      },
    });
  });
  const ends = make('p', {class: 'ends'}, make('span', {}, short(bars.low)), make('span', {}, asked.by), make('span', {}, short(bars.high)));
  return make('div', {}, make('div', {class: 'bins', role: 'group', 'aria-label': `Histogram of ${asked.by}`}, ...buttons), ends);
}

// Ask anew from the first group on; `more` adds the next groups to those in the page.
let questions = 0;
async function ask(more = false) {
  const question = ++questions;
  asked.offset = more ? asked.offset + PAGE : 0;
  let found;
  try {
    found = await find();
  } catch (error) {
    document.querySelector('#found').textContent = `The samples cannot be read: ${error.message}`;
    return;
  }
  if (question !== questions) return;  // a later one is on its way
  const count = shownRuns().reduce((sum, number) => sum + book.runs[number].count, 0);
  const here = book.live ? count : shownRuns().reduce((sum, number) => sum + book.runs[number].samples.length, 0);
  const rest = here < count ? ` of ${here.toLocaleString('en')} in this page; the run has ${count.toLocaleString('en')}, which strop report RUN --serve pages` : '';
  document.querySelector('#found').textContent = `${found.total.toLocaleString('en')} completions${rest}.`;
  document.querySelector('#histogram').replaceChildren(histogram(found.bars));
  document.querySelector('#groups').append(...(more ? [] : [document.querySelector('#groups').replaceChildren() ?? '']), ...found.groups.map(groupOf));
  document.querySelector('#more').hidden = !found.more;
  document.querySelector('#clear').hidden = !(asked.text || asked.step !== '' || asked.bars.size);
}

function control(label, node) {
  return make('label', {}, `${label} `, node);
}

function choice(name, values) {
  const change = event => { asked[name] = event.target.value; asked.bars.clear(); ask(); };
  return make('select', {onchange: change}, ...values.map(value => make('option', {value}, value)));
}

// The frame of the section; `ask` fills it.
function showSamples() {
  const section = document.querySelector('#samples'), any = shownRuns().some(number => book.runs[number].count);
  section.hidden = !any;
  if (!any) return;
  const names = [...new Set(shownRuns().flatMap(number => book.runs[number].rewards))];
  if (!names.includes(asked.by)) asked.by = names[0] ?? 'reward';
  let waiting;
  const type = event => { clearTimeout(waiting); waiting = setTimeout(() => { asked.text = event.target.value; asked.bars.clear(); ask(); }, 150); };
  const clear = () => { Object.assign(asked, {text: '', step: ''}); asked.bars.clear(); showSamples(); };
  section.replaceChildren(
    make('h2', {}, 'Samples'),
    make('div', {class: 'tools'},
      control('Search', make('input', {type: 'search', id: 'search', value: asked.text, oninput: type})),
      control('Step', make('input', {type: 'number', id: 'step', value: asked.step, min: 0, onchange: event => { asked.step = event.target.value; asked.bars.clear(); ask(); }})),
      control('Order', choice('order', ['newest', 'best', 'worst'])),
      names.length > 1 ? control('By', choice('by', names)) : null,
      make('button', {type: 'button', id: 'clear', hidden: true, onclick: clear}, 'All samples')),
    make('div', {id: 'histogram'}), make('p', {id: 'found', role: 'status'}), make('div', {id: 'groups'}),
    make('button', {type: 'button', id: 'more', hidden: true, onclick: () => ask(true)}, 'More'));
  ask();
}

// The samples of the step nearest to one that was clicked on.
async function showSamplesOf(step) {
  if (document.querySelector('#samples').hidden) return say(`Nothing was sampled in this run.`);
  const steps = [...new Set(shownRuns().flatMap(number => book.runs[number].steps))];
  asked.step = String(steps.reduce((best, each) => Math.abs(each - step) < Math.abs(best - step) ? each : best, steps[0]));
  asked.bars.clear();
  document.querySelector('#step').value = asked.step;
  await ask();
  const section = document.querySelector('#samples');
  section.scrollIntoView({behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
  section.focus({preventScroll: true});
  say(`Samples of step ${asked.step}`);
}
