"""The page of :mod:`data_owner.report`: one A4 sheet, light and dark, loads nothing.

Bars are SVG because browsers leave out CSS backgrounds when they print.
"""

from __future__ import annotations

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$image - $model</title>
<style>
:root { color-scheme: light dark; --page: #f3f5f7; --sheet: #fff; --ink: #16202a; --soft: #566575;
  --line: #dbe1e7; --bar: #9db2c6; --top: #1f5f99; --track: #eaeff3; --warn: #8a5200;
  --warnbg: #fff6e3; --stop: #a11c1c; --stopbg: #fdeeee; --good: #27663f; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1318; --sheet: #171e25; --ink: #e6ecf1;
  --soft: #9aa9b7; --line: #2c3742; --bar: #4a6076; --top: #6cb0ee; --track: #232d37;
  --warn: #f1bf6a; --warnbg: #2c2414; --stop: #ff9c9c; --stopbg: #331a1c; --good: #83cf9f; } }
@page { size: A4; margin: 10mm 12mm; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 14px/1.42 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 820px; margin: 24px auto; padding: 28px 32px; background: var(--sheet);
  border: 1px solid var(--line); border-radius: 6px; }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 24px; }
h1 { margin: 0; font-size: 20px; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 20px 0 6px; font-size: 12px; font-weight: 650; letter-spacing: .06em;
  text-transform: uppercase; color: var(--soft); }
h2.first { margin-top: 0; }
p { margin: 0 0 4px; }
.soft { color: var(--soft); }
.right { text-align: right; white-space: nowrap; }
.stop { margin: 14px 0 18px; padding: 9px 14px; border: 1px solid var(--stop);
  border-left-width: 6px; border-radius: 4px; background: var(--stopbg); color: var(--stop); }
.stop strong { display: block; font-size: 15px; }
.case { display: grid; grid-template-columns: 300px 1fr; gap: 28px; align-items: start; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: #000; border-radius: 3px; }
figcaption { margin-top: 5px; font-size: 12px; color: var(--soft); }
.verdict { font-size: 22px; font-weight: 650; line-height: 1.2; margin: 0 0 2px; }
.bars { width: 100%; border-collapse: collapse; table-layout: fixed; margin-top: 8px; }
.bars td { padding: 4px 0; vertical-align: middle; line-height: 1.25; }
.bars .name { width: 42%; padding-right: 12px; overflow-wrap: anywhere; }
.bars .number { width: 70px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.bars .top { font-weight: 650; }
.bars thead td { color: var(--soft); font-size: 11px; padding: 0; }
.bars .logit { color: var(--soft); font-size: 12px; }
svg { display: block; width: 100%; height: 12px; }
.track { fill: var(--track); } .fill { fill: var(--top); } .fill.other { fill: var(--bar); }
.warn { margin: 18px 0 0; padding: 9px 14px; border: 1px solid var(--warn); border-left-width: 6px;
  border-radius: 4px; background: var(--warnbg); color: var(--warn); }
.warn ul { margin: 2px 0 0; padding-left: 18px; }
.good { margin: 18px 0 0; color: var(--good); }
table.grid { width: 100%; border-collapse: collapse; font-size: 13px; }
.grid th { text-align: left; font-weight: 650; padding: 4px 14px 4px 0; vertical-align: top; }
.grid td { padding: 4px 14px 4px 0; vertical-align: top; }
.grid th:last-child, .grid td:last-child { padding-right: 0; }
.grid tr + tr > * { border-top: 1px solid var(--line); }
.grid thead th { font-weight: 400; color: var(--soft); }
.grid th .soft { font-weight: 400; white-space: nowrap; }
.grid .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.costs { display: grid; grid-template-columns: 1fr 1.5fr; gap: 32px; }
footer { margin-top: 18px; padding-top: 10px; border-top: 1px solid var(--line); font-size: 11px;
  color: var(--soft); overflow-wrap: anywhere; }
code { font: 11px ui-monospace, "SF Mono", Consolas, monospace; }
@media (max-width: 700px) { .case, .costs { grid-template-columns: 1fr; gap: 12px; }
  main { margin: 0; padding: 18px; border: 0; } }
@media print { :root { color-scheme: light; --page: #fff; --sheet: #fff; --ink: #000; --soft: #444;
  --line: #ccc; --bar: #9db2c6; --top: #1f5f99; --track: #eaeff3; --warn: #7a4800; --warnbg: #fff;
  --stop: #a11c1c; --stopbg: #fff; --good: #27663f; }
  body { font-size: 9pt; line-height: 1.32; }
  main { max-width: none; margin: 0; padding: 0; border: 0; }
  h1 { font-size: 14pt; } h2 { margin: 8px 0 3px; font-size: 7.5pt; } .verdict { font-size: 15pt; }
  .stop, .warn { padding: 4px 10px; margin: 6px 0 9px; } .warn { margin-bottom: 0; }
  .good { margin-top: 8px; } .case { grid-template-columns: 64mm 1fr; gap: 8mm; }
  .costs { grid-template-columns: 1fr 1.5fr; gap: 8mm; } .grid { font-size: 8.5pt; }
  .grid th, .grid td { padding-top: 1px; padding-bottom: 1px; }
  .bars td { padding: 1.5px 0; } .bars .number { width: 60px; } .bars thead td { font-size: 8pt; }
  svg { height: 9px; } figcaption { font-size: 8pt; }
  footer { margin-top: 8px; padding-top: 5px; font-size: 7.5pt; } code { font-size: 7.5pt; } }
</style>
</head>
<body>
<main>
<header>
<h1>$image</h1>
<p class="soft right">$created</p>
</header>
<p class="soft">$model, version $version</p>
<div class="stop" role="note"><strong>Not for diagnosis.</strong>
The output of a research model, not of a medical device. No one has reviewed this result.</div>
<section class="case">
<figure>$picture</figure>
<div>
<h2 class="first">Output of the model</h2>
$verdict
<table class="bars">
$bars
</table>
$more
</div>
</section>
$warnings
<h2>What the model was made for</h2>
<p>$statement</p>
<h2>What was revealed to whom</h2>
<table class="grid">
<thead><tr><th>Party</th><th>Received</th><th>Can learn</th><th>Cannot learn</th></tr></thead>
<tbody>
<tr><th>Clinic<br><span class="soft">data owner</span></th>
<td>the vendor's weights, masked; masked values</td>
<td>the outputs above, rounded; the structure of the model</td>
<td>the vendor's weights, beyond what outputs tell</td></tr>
<tr><th>Vendor<br><span class="soft">model owner</span></th>
<td>masked values, as good as random to it</td>
<td>that one inference was made, when, and how long it took</td>
<td>the image, the result, any patient field</td></tr>
<tr><th>Dealer<br><span class="soft">crypto provider</span></th>
<td>keys of the masks and the model's structure, before the image</td>
<td>that a session was prepared, and when</td>
<td>the image, the result, the weights</td></tr>
</tbody>
</table>
<p class="soft">This holds as long as no two of the three work together.
The picture and this page stay at the clinic.</p>
<section class="costs">
<div>
<h2>Time</h2>
<table class="grid"><tbody>
$times
</tbody></table>
</div>
<div>
<h2>Data sent</h2>
<table class="grid">
<thead><tr><th>From and to</th><th class="number">With the image</th>
<th class="number">Before it</th></tr></thead>
<tbody>
$traffic
</tbody></table>
</div>
</section>
<footer>Plan <code>$plan_digest</code><br>Session <code>$session_id</code> -
radiopaque $software</footer>
</main>
</body>
</html>
""")
