"""The report's style sheet: one column, readable from a phone to a wide screen, on paper, on light and on dark."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5a646e; --line: #d9dee3; --paper: #ffffff; --tint: #f5f7f9;
  --mark: #fff1d6; --mark-ink: #7a4a00; --rl: #fdf1ea; --up: #00704f; --down: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #a2abb4; --line: #363d44; --paper: #14181c;
  --tint: #1c2126; --mark: #4a3612; --mark-ink: #ffdc9c; --rl: #2c2019; --up: #5fd0a5; --down: #ff9a90; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
details { margin: 1.2rem 0; }
p { margin: .4rem 0; max-width: 88ch; }
.soft { color: var(--soft); font-size: .9rem; }
.lead { font-size: 1.05rem; }
ul.verdicts { padding: 0; margin: 1.1rem 0; list-style: none; max-width: 110ch; }
ul.verdicts li { padding: .3rem 0 .3rem 1.6rem; position: relative; }
ul.verdicts li::before { position: absolute; left: .2rem; content: "·"; color: var(--soft); font-weight: 700; }
ul.verdicts li.up::before { content: "▲"; color: var(--up); font-size: .8em; top: .55em; }
ul.verdicts li.down::before { content: "▼"; color: var(--down); font-size: .8em; top: .55em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(215px, 100%), 1fr)); gap: .75rem;
  margin: 1.2rem 0; }
.tile { background: var(--tint); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; white-space: nowrap; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
table.main { width: 100%; font-size: .8rem; } .main th, .main td { padding: .34rem .3rem; }
.main td.first { padding-left: .75rem; }
th, td { padding: .32rem .55rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
thead tr:last-child th { border-bottom: 1px solid var(--soft); }
th.group { text-align: center; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.main tbody th { position: sticky; left: 0; background: var(--paper); color: var(--ink); font-weight: 500; }
tr.block > * { border-top: 1px solid var(--line); }
tr.rl > *, .main tbody tr.rl th { background: var(--rl); }
td b { font-weight: 700; }
td .soft { font-size: .92em; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 1.1rem 1.4rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .2rem; }
svg.chart { width: 100%; height: auto; display: block; color: var(--ink); }
svg.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .88rem; margin: .6rem 0 .8rem; }
.legend svg { width: 30px; height: 10px; margin-right: .4rem; vertical-align: middle; }
dl.systems { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; font-size: .88rem;
  margin: .8rem 0; }
dl.systems dt { font-weight: 600; } dl.systems dd { margin: 0; color: var(--soft); }
.user { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: .9rem 0; break-inside: avoid; }
.user h3 { margin: 0 0 .3rem; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: .4rem 1.6rem;
  font-size: .9rem; overflow-wrap: anywhere; }
.lists h4 { margin: .5rem 0 .2rem; font-size: .9rem; }
.lists ol { margin: 0; padding-left: 1.9rem; }
.lists li.hit { background: var(--mark); color: var(--mark-ink); font-weight: 600; border-radius: 4px; }
.tag { font-size: .74rem; color: var(--soft); font-weight: 400; margin-left: .4em; white-space: nowrap; }
li.hit .tag { color: inherit; }
pre { background: var(--tint); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; font-size: .8rem;
  line-height: 1.45; }
summary { cursor: pointer; font-weight: 600; }
table.facts th { font-weight: 500; } table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts th { vertical-align: top; text-align: left; }
@media (max-width: 560px) { main { padding: 1.1rem .9rem 3rem; } h1 { font-size: 1.4rem; }
  dl.systems { grid-template-columns: 1fr; } dl.systems dd { margin-bottom: .35rem; } }
@media print { body { font-size: 10.5pt; } main { max-width: none; padding: 0; } table { font-size: 7.4pt; }
  th, td { padding: .2rem .28rem; } .scroll { overflow: visible; } .charts { grid-template-columns: repeat(3, 1fr); }
  table.facts { font-size: 9pt; }
  h2, h3 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""
