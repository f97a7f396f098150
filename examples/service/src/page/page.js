// Reads /snapshot.json once a second. Names are untrusted: they are set as text, never as markup.
'use strict';

const PERIOD = 1000;
const RATES_OVER = 5;      // seconds
const LATENCIES_OVER = 10; // seconds
const CHUNKS_EVERY = 5;    // snapshots
const MOST_ROWS = 300;
const MOST_EVENTS = 100;
const COLOURS = 5;

const byId = (id) => document.getElementById(id);
const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
/** A name as it is to be read: what is invisible, or turns the direction of the text, is written out. */
const visible = (name) =>
  name.replace(/[\p{C}\p{Zl}\p{Zp}\u{a0}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
/** Sets a text only where it has changed, so that a selection stays. */
const setText = (to, text) => { if (to.textContent !== text) to.textContent = text; };

// ---- Formats: each has a fixed number of digits -----------------------------------------------------------

const NONE = '–';
const bytes = (n) => {
  if (n === null) return 'no limit';
  let unit = 0;
  while (n >= 1000 && unit < 6) { n /= 1024; unit += 1; }
  const digits = unit === 0 || n >= 100 ? 0 : n >= 10 ? 1 : 2;
  return `${n.toFixed(digits)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'][unit]}`;
};
const rate = (n) => {
  if (n === null) return NONE;
  if (n >= 9999.5) return `${(n / 1000).toFixed(1)} k`;
  return n === 0 ? '0' : n < 9.95 ? n.toFixed(1) : n.toFixed(0);
};
const count = (n) => (n < 1e4 ? `${n}` : n < 1e6 ? `${(n / 1e3).toFixed(1)}k` : `${(n / 1e6).toFixed(1)}M`);
const time = (ns) => {
  if (ns === null) return NONE;
  if (ns === Infinity) return '> 33 s';
  if (ns < 1e6) return `${(ns / 1e3).toFixed(0)} µs`;
  if (ns < 1e9) return `${(ns / 1e6).toFixed(ns < 1e7 ? 2 : ns < 1e8 ? 1 : 0)} ms`;
  return `${(ns / 1e9).toFixed(2)} s`;
};
const uptime = (s) => {
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(s)} s`;
};
const clock = (at) => new Date(at * 1000).toTimeString().slice(0, 8);

// ---- What was seen ---------------------------------------------------------------------------------------

/** Snapshots of the last seconds, the oldest first. */
const seen = [];
/** Of the last minute: [at, bytes by path]. */
const minute = [];

/** The newest snapshot that is at least so many seconds older than the last one, or the oldest. */
const before = (seconds) => {
  const last = seen.at(-1);
  return seen.findLast((older) => last.at - older.at >= seconds) ?? seen[0];
};

/** The value below which a part of all lies, of counts by bucket; by interpolation. */
const quantile = (part, bounds, counts, over) => {
  const all = counts.reduce((sum, n) => sum + n, over);
  if (all <= 0) return null;
  let left = part * all;
  for (let i = 0; i < counts.length; i += 1) {
    if (counts[i] > 0 && left <= counts[i]) {
      const from = i > 0 ? bounds[i - 1] : 0;
      return from + (bounds[i] - from) * (left / counts[i]);
    }
    left -= counts[i];
  }
  return Infinity;
};

/** What the rows show, of the last snapshot and earlier ones. */
const figures = () => {
  const now = seen.at(-1);
  const then = before(RATES_OVER);
  const long = before(LATENCIES_OVER);
  const passed = now.at - then.at;
  const perSecond = (a, b) => (passed > 0 ? Math.max(0, (a - (b ?? 0)) / passed) : null);
  const eventsThen = new Map(then.cgroups.map((cgroup) => [cgroup.path, cgroup.events]));
  const rows = now.cgroups.map((cgroup) => {
    const { path, depth, current, max, high } = cgroup;
    const cut = path.lastIndexOf('/');
    const row = {
      ...cgroup,
      name: path === '/' ? '/' : visible(path.slice(cut + 1)),
      parent: path === '/' ? null : path.slice(0, cut) || '/',
      depth,
      share: max ? current / max : max === 0 ? 1 : null,
      maxTotal: cgroup.events.max,
      highTotal: cgroup.events.high,
      maxEvents: perSecond(cgroup.events.max, eventsThen.get(path)?.max),
      highEvents: perSecond(cgroup.events.high, eventsThen.get(path)?.high),
      requests: null, refused: null, p50: null, p99: null, isTenant: false,
    };
    const tenant = now.tenants[path];
    if (tenant) {
      const sum = (of) => Object.values(of?.answers ?? {}).reduce((a, b) => a + b, 0);
      const old = then.tenants[path];
      const { bounds, counts, over } = tenant.latency;
      const older = long.tenants[path]?.latency;
      // A tenant that was removed and created again begins at 0.
      const isOlder = older && older.counts.every((n, i) => n <= counts[i]);
      row.inWindow = {
        bounds,
        counts: isOlder ? counts.map((n, i) => n - older.counts[i]) : counts,
        over: isOlder ? over - older.over : over,
      };
      row.isTenant = true;
      row.requests = perSecond(sum(tenant), sum(old));
      row.refused = perSecond(tenant.answers[429] ?? 0, old?.answers[429]);
      row.p50 = quantile(0.5, bounds, row.inWindow.counts, row.inWindow.over);
      row.p99 = quantile(0.99, bounds, row.inWindow.counts, row.inWindow.over);
    }
    row.isFull = max !== null && (row.share >= 0.995 || row.maxEvents > 0);
    row.isWarm = !row.isFull && ((high !== null && current > high) || row.share >= 0.8);
    return row;
  });
  return { now, rows };
};

// ---- The tree --------------------------------------------------------------------------------------------

const rowsByPath = new Map();
const collapsed = new Set();
let sort = { by: 'name', down: false };

const COLUMNS = [
  ['in use', (r) => bytes(r.current)],
  ['limit', (r) => bytes(r.max), (r) => r.max === null],
  ['%', (r) => (r.share === null ? NONE : `${(r.share * 100).toFixed(1)}`), (r) => r.share === null, 'pct'],
  ['cached', (r) => bytes(r.cached), (r) => r.cached === 0],
  ['max · /s', (r) => `${count(r.maxTotal)} · ${rate(r.maxEvents)}`, (r) => r.maxTotal === 0, 'events', (r) => r.max !== null && r.maxEvents > 0],
  ['high · /s', (r) => `${count(r.highTotal)} · ${rate(r.highEvents)}`, (r) => r.highTotal === 0, 'events'],
  ['req/s', (r) => (r.isTenant ? rate(r.requests) : ''), (r) => r.requests === 0],
  ['429/s', (r) => (r.isTenant ? rate(r.refused) : ''), (r) => r.refused === 0, '', (r) => r.refused > 0],
  ['p50', (r) => (r.isTenant ? time(r.p50) : ''), (r) => r.p50 === null],
  ['p99', (r) => (r.isTenant ? time(r.p99) : ''), (r) => r.p99 === null],
];

const makeRow = (path) => {
  const tr = element('tr');
  const name = element('td', 'name');
  const line = name.appendChild(element('div'));
  const toggle = line.appendChild(element('button'));
  toggle.addEventListener('click', () => {
    if (!collapsed.delete(path)) collapsed.add(path);
    draw();
  });
  const label = line.appendChild(element('span', 'path'));
  const badge = line.appendChild(element('span', 'badge', 'at limit'));
  const usage = element('td', 'usage');
  const meter = usage.appendChild(element('div', 'meter'));
  const [charged, percpu, peak, high, max] =
    ['charged', 'percpu', 'peak', 'high', 'max'].map((part) => meter.appendChild(element('i', part)));
  const cells = COLUMNS.map(([is, , , className]) => {
    const cell = element('td', className ?? '');
    cell.dataset.is = is;
    return cell;
  });
  tr.append(name, usage, ...cells);
  return { tr, toggle, label, badge, meter, charged, percpu, peak, high, max, line, cells };
};

const place = (mark, at, scale) => {
  mark.hidden = at === null || at > scale;
  if (!mark.hidden) mark.style.left = `${(at / scale) * 100}%`;
};

const drawRow = (parts, row, hasChildren, unlimited) => {
  const { tr, toggle, label, badge, meter, charged, percpu, peak, high, max, line, cells } = parts;
  tr.className = row.isFull ? 'full' : row.isWarm ? 'warn' : '';
  line.style.paddingLeft = `${row.depth * 14}px`;
  setText(label, row.name);
  label.title = visible(row.path);
  const isOpen = !collapsed.has(row.path);
  setText(toggle, hasChildren ? (isOpen ? '▾' : '▸') : '');
  toggle.disabled = !hasChildren;
  toggle.setAttribute('aria-expanded', `${isOpen}`);
  toggle.setAttribute('aria-label', `children of ${row.name}`);
  badge.hidden = !(row.isFull && row.maxEvents > 0);

  // Usage beyond the limit is seen as well.
  const scale = row.max === null ? Math.max(unlimited, 1) : Math.max(row.max, row.current, 1) * 1.03;
  charged.style.width = `${(row.charged / scale) * 100}%`;
  percpu.style.left = charged.style.width;
  percpu.style.width = `${(row.percpu / scale) * 100}%`;
  place(peak, row.peak > row.current * 1.01 ? Math.min(row.peak, scale) : null, scale);
  place(high, row.high, scale);
  place(max, row.max, scale);
  meter.title = `${bytes(row.charged)} charged, ${bytes(row.percpu)} per-CPU areas, peak ${bytes(row.peak)}, `
    + `high ${bytes(row.high)}, max ${bytes(row.max)}`;
  COLUMNS.forEach(([, text, isDim, className, isHot], i) => {
    setText(cells[i], text(row));
    cells[i].className = [className, isDim?.(row) ? 'zero' : '', isHot?.(row) ? 'hot' : ''].filter(Boolean).join(' ');
  });
};

const drawTree = (rows) => {
  const children = new Map();
  rows.forEach((row) => children.set(row.parent, [...(children.get(row.parent) ?? []), row]));
  const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
  const key = (row) => (sort.by === 'max' && row.max === null ? Infinity : row[sort.by] ?? -1);
  const compare = (a, b) =>
    (sort.by === 'name' ? byName(a, b) : key(a) - key(b) || -byName(a, b)) * (sort.down ? -1 : 1);
  const wanted = byId('filter').value.trim().toLowerCase();
  const matches = (row) =>
    row.path.toLowerCase().includes(wanted) || (children.get(row.path) ?? []).some(matches);

  const shown = [];
  const visit = (row) => {
    if (wanted && !matches(row)) return;
    shown.push(row);
    if (wanted || !collapsed.has(row.path)) (children.get(row.path) ?? []).toSorted(compare).forEach(visit);
  };
  (children.get(null) ?? []).forEach(visit);

  const unlimited = Math.max(...rows.filter((row) => row.max === null).map((row) => row.current), 0) * 1.03;
  const body = byId('rows');
  const kept = new Set();
  shown.slice(0, MOST_ROWS).forEach((row, i) => {
    if (!rowsByPath.has(row.path)) rowsByPath.set(row.path, makeRow(row.path));
    const parts = rowsByPath.get(row.path);
    drawRow(parts, row, children.has(row.path), unlimited);
    if (body.children[i] !== parts.tr) body.insertBefore(parts.tr, body.children[i] ?? null);
    kept.add(row.path);
  });
  for (const [path, { tr }] of rowsByPath) {
    if (!kept.has(path)) {
      tr.remove();
      rowsByPath.delete(path);
    }
  }
  const leftOut = shown.length - MOST_ROWS;
  byId('left-out').hidden = leftOut <= 0;
  setText(byId('left-out'), `${leftOut} more: filter, or collapse`);
};

// ---- The rest --------------------------------------------------------------------------------------------

const drawTiles = (now, rows) => {
  const root = rows[0];
  const tenants = rows.filter((row) => row.isTenant);
  const sum = (of) => (tenants.some((row) => row[of] === null) ? null : tenants.reduce((n, row) => n + row[of], 0));
  setText(byId('t-use'), bytes(root.current));
  setText(byId('t-use-note'), `peak ${bytes(root.peak)} · per-CPU ${bytes(root.percpu)} · cached ${bytes(root.cached)}`);
  setText(byId('t-req'), rate(sum('requests')));
  setText(byId('t-req-note'), `${tenants.length} tenants, ${Object.values(now.tenants).reduce((n, t) => n + t.requests_under_way, 0)} under way`);
  const refused = sum('refused');
  setText(byId('t-429'), rate(refused));
  setText(byId('t-429-note'), refused > 0 ? tenants.filter((row) => row.refused > 0).map((row) => row.name).join(', ') : 'no room: 429');
  byId('t-429').parentElement.classList.toggle('alert', refused > 0);

  const others = tenants.filter((row) => !row.isFull);
  let all = null;
  for (const { inWindow } of others) {
    all ??= { bounds: inWindow.bounds, counts: inWindow.counts.map(() => 0), over: 0 };
    inWindow.counts.forEach((n, i) => { all.counts[i] += n; });
    all.over += inWindow.over;
  }
  setText(byId('t-p99'), all ? time(quantile(0.99, all.bounds, all.counts, all.over)) : NONE);

  const full = tenants.filter((row) => row.isFull);
  setText(byId('t-full'), `${full.length}`);
  setText(byId('t-full-note'), full.map((row) => row.name).join(', ') || 'no tenant');
  byId('t-full').parentElement.classList.toggle('alert', full.length > 0);

  const tier = typeof now.tier === 'string' ? now.tier : Object.keys(now.tier)[0];
  const heap = now.charges_heap ? `whole heap charged, ${count(now.heap_exceeded)} allocations beyond a limit` : 'charges only';
  setText(byId('about'), `up ${uptime(now.uptime_seconds)} · ${now.possible_cpus} CPUs · tier ${tier} · ${heap}`);
  setText(byId('chunks-note'), `${now.chunks.nr_chunks} chunks, ${now.chunks.nr_cur_alloc} areas`);
};

const svg = (name, attributes) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
};

/** The colour of a path stays, as long as it is among those with one. */
const colours = new Map();

const drawChart = (rows) => {
  const parts = rows.filter((row) => row.depth > 0 && !rows.some((other) => other.parent === row.path));
  const most = (path) => Math.max(...minute.map(([, by]) => by.get(path) ?? 0));
  const top = parts.map((row) => row.path).toSorted((a, b) => most(b) - most(a)).slice(0, COLOURS);
  [...colours.keys()].filter((path) => !top.includes(path)).forEach((path) => colours.delete(path));
  top.forEach((path) => {
    const taken = new Set(colours.values());
    if (!colours.has(path)) colours.set(path, [0, 1, 2, 3, 4].find((colour) => !taken.has(colour)));
  });
  const [W, H] = [600, 150];
  const last = minute.at(-1)[0];
  const x = (at) => W - ((last - at) / 60) * W;
  const highest = Math.max(...minute.map(([, by]) => by.get('/') ?? 0), 1);
  const y = (n) => H - (n / (highest * 1.08)) * H;

  const chart = byId('chart');
  chart.replaceChildren();
  let below = minute.map(() => 0);
  const layer = (value, colour) => {
    const above = minute.map(([, by], i) => below[i] + value(by));
    const point = (sums) => (_, i) => `${x(minute[i][0]).toFixed(1)},${y(sums[i]).toFixed(1)}`;
    const line = [...minute.map(point(above)), ...minute.map(point(below)).reverse()];
    chart.append(svg('polygon', { points: line.join(' '), class: `s${colour}` }));
    below = above;
  };
  const inOrder = [...colours].toSorted((a, b) => a[1] - b[1]);
  inOrder.forEach(([path, colour]) => layer((by) => by.get(path) ?? 0, colour));
  layer((by) => Math.max(0, (by.get('/') ?? 0) - inOrder.reduce((n, [path]) => n + (by.get(path) ?? 0), 0)), COLOURS);
  for (const part of [0.25, 0.5, 0.75]) chart.append(svg('path', { d: `M0 ${H * part}H${W}`, class: 'grid' }));

  const peak = minute.reduce((a, b) => ((b[1].get('/') ?? 0) > (a[1].get('/') ?? 0) ? b : a));
  setText(byId('chart-note'), `peak ${bytes(peak[1].get('/') ?? 0)}, ${Math.round(last - peak[0])} s ago`);
  const legend = byId('chart-legend');
  const items = [...inOrder, ['others', COLOURS]];
  while (legend.children.length > items.length) legend.lastChild.remove();
  items.forEach(([path, colour], i) => {
    const item = legend.children[i] ?? legend.appendChild(element('li'));
    if (!item.firstChild) item.append(element('i'), element('span'));
    item.firstChild.className = `s${colour}`;
    setText(item.lastChild, visible(path.slice(path.lastIndexOf('/') + 1)));
    item.title = visible(path);
  });
};

const KINDS = {
  max: 'the limit was reached', high: 'was above high', low: 'protected memory was taken',
  oom: 'out of memory', oom_kill: 'victims',
};
/** The lines of what still goes on, by kind and path. */
const going = new Map();

const logLine = (kind, path, at) => {
  const log = byId('log');
  log.querySelector('.none')?.remove();
  const line = element('li', kind);
  line.append(element('time', '', clock(at)), element('span', 'who', visible(path)), element('span', 'what'));
  line.title = visible(path);
  log.prepend(line);
  while (log.children.length > MOST_EVENTS) log.lastChild.remove();
  return line.lastElementChild;
};

const drawEvents = () => {
  if (seen.length < 2) return;
  const [old, now] = [seen.at(-2), seen.at(-1)];
  const then = new Map(old.cgroups.map((cgroup) => [cgroup.path, cgroup]));
  const is = new Set(now.cgroups.map((cgroup) => cgroup.path));
  for (const { path, events, max, high } of now.cgroups) {
    const before = then.get(path);
    if (!before) setText(logLine('new', path, now.at), `created, ${max === null ? 'no limit' : `limit ${bytes(max)}`}`);
    for (const [kind, text] of Object.entries(KINDS)) {
      // Events count above as well: told is the cgroup that has the limit.
      if ((kind === 'max' && max === null) || (kind === 'high' && high === null)) continue;
      const added = events[kind] - (before?.events[kind] ?? 0);
      if (added <= 0) continue;
      const key = `${kind} ${path}`;
      let going_on = going.get(key);
      if (!going_on || now.at - going_on.last > 3) going_on = { since: old.at, times: 0, what: logLine(kind, path, now.at) };
      going_on.times += added;
      going_on.last = now.at;
      going.set(key, going_on);
      const lasted = Math.round(now.at - going_on.since);
      setText(going_on.what, `${text}${going_on.times > 1 ? ` ${count(going_on.times)} times` : ''}${lasted > 1 ? ` in ${lasted} s` : ''}`);
    }
    if (before && before.max !== max) setText(logLine('set', path, now.at), `limit ${bytes(before.max)} → ${bytes(max)}`);
  }
  then.forEach((_, path) => { if (!is.has(path)) setText(logLine('gone', path, now.at), 'removed'); });
};

const draw = () => {
  if (!seen.length) return;
  const { now, rows } = figures();
  drawTiles(now, rows);
  drawTree(rows);
  drawChart(rows);
};

// ---- The loop --------------------------------------------------------------------------------------------

let nth = 0;

const take = (snapshot) => {
  // The service was started again.
  if (seen.length && snapshot.uptime_seconds < seen.at(-1).uptime_seconds) {
    seen.length = 0;
    minute.length = 0;
  }
  seen.push(snapshot);
  while (seen.length > 2 && snapshot.at - seen[1].at > LATENCIES_OVER) seen.shift();
  minute.push([snapshot.at, new Map(snapshot.cgroups.map((cgroup) => [cgroup.path, cgroup.current]))]);
  while (minute.length > 1 && snapshot.at - minute[1][0] >= 60) minute.shift();
};

const step = async () => {
  const state = byId('state');
  try {
    const answer = await fetch('/snapshot.json', { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`${answer.status}`);
    take(await answer.json());
    drawEvents();
    draw();
    state.className = 'live';
    setText(state.lastElementChild, clock(seen.at(-1).at));
    if (nth % CHUNKS_EVERY === 0 && !document.hidden) byId('chunks').src = `/chunks.svg?${nth}`;
    nth += 1;
  } catch {
    state.className = 'lost';
    setText(state.lastElementChild, 'no answer');
  }
};

/** What was before this page was opened. */
const begin = async () => {
  try {
    const answer = await fetch('/history.json');
    if (answer.ok) {
      for (const { at, current } of await answer.json()) minute.push([at, new Map(Object.entries(current))]);
    }
  } catch { /* The page begins without. */ }
  for (;;) {
    const begun = Date.now();
    if (!document.hidden || !seen.length) await step();
    await new Promise((resolve) => setTimeout(resolve, Math.max(50, PERIOD - (Date.now() - begun))));
  }
};

document.querySelector('#tree thead').addEventListener('click', (event) => {
  const by = event.target.dataset.sort;
  if (!by) return;
  // The largest first, and names from A; again: the other way round.
  sort = { by, down: sort.by === by ? !sort.down : by !== 'name' };
  document.querySelectorAll('#tree th').forEach((th) => th.removeAttribute('aria-sort'));
  event.target.parentElement.setAttribute('aria-sort', sort.down ? 'descending' : 'ascending');
  draw();
});
byId('filter').addEventListener('input', draw);
begin();
