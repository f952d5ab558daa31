"""The page's style sheet and its script, as text so that the report is one file."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;
--bg:#f5f3ee;--card:#fffefb;--ink:#17211f;--muted:#65716d;--line:#e2ded4;--soft:#efece4;
--base:#94a09c;--sft:#d4541c;--dpo:#2f66c4;--rl:#0c8078;--merge:#8a5cc2;
--embedding:#e0a526;--head:#b97c12;--attention:#2f66c4;--conv:#0c8078;--linear_attention:#8a5cc2;
--mlp:#687f92;--experts:#44586a;--router:#c0556b;--norms:#b9b4a8;
--even:#ffdcc8;--odd:#ffc4a3;--onset:#c2410c;--onink:#fff}
@media (prefers-color-scheme:dark){:root{
--bg:#0c1315;--card:#131c1f;--ink:#e6edeb;--muted:#95a5a1;--line:#263337;--soft:#1a2529;
--base:#71807d;--sft:#ff8a4c;--dpo:#78a6f8;--rl:#3dc4b7;--merge:#b996ea;
--embedding:#e3b145;--head:#b98a2e;--attention:#3f74d6;--conv:#1d8c82;--linear_attention:#9b76d2;
--mlp:#566c7e;--experts:#3d4f5e;--router:#cb6a7e;--norms:#8a867c;
--even:#51301d;--odd:#6b3a1d;--onset:#ff8a4c;--onink:#1d0f06}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
font-variant-numeric:tabular-nums}
.wrap{max-width:1060px;margin:0 auto;padding:0 20px}
.top{padding-top:48px;padding-bottom:28px}
.eyebrow{margin:0;font-size:13px;letter-spacing:.08em;text-transform:uppercase;color:var(--rl);
font-weight:650}
h1{font-size:clamp(38px,7vw,64px);line-height:1.05;letter-spacing:-.03em;margin:6px 0 12px;
overflow-wrap:anywhere}
.lede{font-size:clamp(17px,2.2vw,20px);line-height:1.5;color:var(--muted);max-width:46em;margin:0 0 28px}
.lede b{color:var(--ink);font-weight:650}
.cards{display:grid;grid-template-columns:repeat(12,1fr);gap:14px;margin-bottom:14px}
.cards.small{grid-template-columns:repeat(auto-fit,minmax(170px,1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px 18px;
display:flex;flex-direction:column}
.card.wide{grid-column:span 12}.card.loops{grid-column:span 7}.card.lookup{grid-column:span 5}
.card h2{font-size:13px;font-weight:600;color:var(--muted);margin:0 0 8px;letter-spacing:0}
.big{font-size:clamp(28px,4vw,40px);line-height:1.1;letter-spacing:-.025em;font-weight:680}
.muted{color:var(--muted);font-weight:400}
.card .muted{font-size:13.5px}
.steps{display:flex;align-items:flex-start;justify-content:space-between;gap:6px}
.steps .big{font-size:clamp(24px,3.2vw,36px)}
.steps>div{display:flex;flex-direction:column}
.step{font-weight:650;font-size:14px}
.arrow{color:var(--muted);font-size:24px;align-self:center}
.versus>div{display:flex;align-items:baseline;gap:8px}
.versus .step{width:5em}.card .versus .mid{font-size:18px;width:3.2em;text-align:right}
.versus .step{white-space:nowrap}.versus .arrow{font-size:16px}
nav{position:sticky;top:0;z-index:5;background:color-mix(in srgb,var(--bg) 88%,transparent);
backdrop-filter:blur(8px);border-bottom:1px solid var(--line)}
nav .wrap{display:flex;gap:20px;overflow-x:auto;scrollbar-width:none}
nav a{padding:11px 0;color:var(--muted);text-decoration:none;font-size:14px;white-space:nowrap;
border-bottom:2px solid transparent}
nav a:hover,nav a.here{color:var(--ink);border-color:var(--rl)}
section{background:var(--card);border:1px solid var(--line);border-radius:16px;padding:30px 32px 26px;
margin:22px 0;scroll-margin-top:56px}
section h2{font-size:25px;letter-spacing:-.02em;line-height:1.2;margin:0 0 6px}
section h3{font-size:17px;margin:32px 0 10px}
h4{font-size:14px;margin:0 0 6px;font-weight:650}
.takeaway{font-size:17.5px;line-height:1.5;margin:0 0 22px;max-width:44em;color:var(--ink)}
figure{margin:0}
figcaption{color:var(--muted);font-size:13.5px;margin-top:12px;max-width:58em;line-height:1.5}
svg{display:block;overflow:visible}
svg svg{overflow:hidden}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:26px 36px}
.triple{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:26px 36px;margin-bottom:26px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13.5px;color:var(--muted);margin-bottom:14px}
.legend span{display:inline-flex;align-items:center;gap:6px}.key{width:12px;height:12px}
.plot{padding:18px 10px 28px 50px;position:relative}
.plot>svg{width:100%;height:100%}
.plot.small{padding:12px 4px 24px 38px}
.ytitle,.xtitle{font-size:12.5px;color:var(--muted)}.xtitle{text-align:center;margin-top:-2px;min-height:2px}
.grid{stroke:var(--line);stroke-width:1}
.tick{font-size:12px;fill:var(--muted)}.mid{text-anchor:middle}.end{text-anchor:end}
.note{font-size:12px;fill:var(--muted)}
.mark{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 3}
.curve{fill:none;stroke:var(--c);stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.curve.light{stroke-width:1.5;opacity:.75}.curve.thin{stroke:var(--muted);stroke-width:1.25;opacity:.55}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1.5}
.whisker{stroke:var(--c);stroke-width:4;stroke-linecap:round;opacity:.38}
.bar,.seg{fill:var(--c)}.rail{fill:var(--soft)}
.over{stroke:var(--ink);stroke-width:1.5;opacity:.75}
.seg{stroke:var(--card);stroke-width:1.5}
.seglabel{font-size:13px;font-weight:650;fill:#fff;pointer-events:none}.on-embedding{fill:#2a1c00}
.hot{stroke:var(--ink);stroke-width:2}
.c-base{--c:var(--base)}.c-sft{--c:var(--sft)}.c-dpo{--c:var(--dpo)}.c-rl{--c:var(--rl)}
.c-merge{--c:var(--merge)}
.c-embedding{--c:var(--embedding)}.c-attention{--c:var(--attention)}.c-conv{--c:var(--conv)}
.c-head{--c:var(--head)}.c-linear_attention{--c:var(--linear_attention)}
.c-mlp{--c:var(--mlp)}.c-experts{--c:var(--experts)}.c-router{--c:var(--router)}.c-norms{--c:var(--norms)}
.t-base{color:var(--muted)}.t-sft{color:var(--sft)}.t-dpo{color:var(--dpo)}.t-rl{color:var(--rl)}
.t-merge{color:var(--merge)}
.row{display:grid;grid-template-columns:minmax(70px,auto) minmax(0,1fr) 150px;align-items:center;gap:0 16px}
.rows{display:grid;grid-template-columns:auto minmax(0,1fr) auto;column-gap:16px}
.rows .row{display:grid;grid-template-columns:subgrid;grid-column:1/-1}
.rhead{grid-column:1/-1;font-size:14.5px;margin:10px 0 2px}.rname{font-size:14px}
.rvalue{font-size:14px;white-space:nowrap}
.amounts .rvalue{text-align:right}
.rvalue .muted{font-size:12.5px;margin-left:4px}
.track{width:100%;height:32px}.axis{width:100%;height:18px}
.stackrow{margin-bottom:14px}
.barhead{display:flex;justify-content:space-between;gap:12px;font-size:14.5px;margin-bottom:4px}
.stack{width:100%;height:34px;border-radius:7px;overflow:hidden}
.minis{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:22px 28px}
.mini{position:relative}
.flag{display:inline-block;font-size:12px;font-weight:650;color:var(--onset);
border:1px solid currentColor;border-radius:99px;padding:0 8px}.mini .flag{margin-top:6px}
details{margin-top:12px}
summary{cursor:pointer;font-size:13.5px;color:var(--muted);width:max-content;padding:2px 0}
summary:hover{color:var(--ink)}
.scroll{overflow-x:auto;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;font-size:12.5px;color:var(--muted);text-align:left;vertical-align:bottom}
th,td{padding:7px 12px 7px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{white-space:normal}
tbody tr:last-child td{border-bottom:0}
th:first-child,td:first-child{position:sticky;left:0;background:var(--card)}
.n{text-align:right}td:last-child,th:last-child{padding-right:2px}
.example{min-width:0}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:8px}
.chip{font-size:12px;border:1px solid var(--line);border-radius:99px;padding:1px 9px;font-weight:600}
.prompt{font-size:14px;color:var(--muted);margin:0 0 8px;white-space:pre-wrap;overflow-wrap:anywhere}
.looptext,.code{font:13px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
background:var(--soft);border-radius:10px;padding:14px 16px;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:380px;overflow-y:auto;margin:0}
.looptext mark{color:inherit;background:var(--even);box-decoration-break:clone;
-webkit-box-decoration-break:clone;padding:1px 0}
.looptext mark.odd{background:var(--odd)}
.onset{background:var(--onset);color:var(--onink);font:600 11px/1 system-ui,sans-serif;border-radius:4px;
padding:3px 7px;margin:0 4px;white-space:nowrap;vertical-align:1px}
.token{opacity:.5;font-size:.9em}
.trace{display:grid;gap:8px;max-width:760px}
.turn{display:grid;grid-template-columns:76px minmax(0,1fr);gap:12px;border-radius:10px;
padding:10px 14px;background:var(--soft);font-size:15px}
.turn>div{white-space:pre-wrap;overflow-wrap:anywhere}
.who{font-size:12.5px;font-weight:650;color:var(--muted);padding-top:2px}
.turn.call>div{font:13.5px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.turn.call .who{color:var(--dpo)}.turn.answer .who{color:var(--rl)}
.turn.result{font-size:13.5px;color:var(--muted)}
.below{margin-top:28px}
footer{color:var(--muted);font-size:13px;padding-bottom:40px}
.pairs td{white-space:normal;overflow-wrap:anywhere}.pairs thead{display:none}
.pairs td:last-child{text-align:right}
.tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--bg);font-size:13px;
line-height:1.4;border-radius:8px;padding:7px 10px;
white-space:pre-line;max-width:260px;opacity:0;transition:opacity .12s;left:0;top:0}
.tip.on{opacity:1}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--rl);outline-offset:2px}
@media (max-width:860px){.card.loops,.card.lookup{grid-column:span 12}.triple{grid-template-columns:1fr}}
@media (max-width:700px){
.wrap{padding:0 14px}.top{padding-top:30px;padding-bottom:20px}
.cards{gap:10px;margin-bottom:10px}.card{padding:13px 14px}
.cards.small{grid-template-columns:repeat(2,minmax(0,1fr))}
.cards.small .card:last-child:nth-child(odd){grid-column:1/-1}
.steps{display:grid;grid-auto-flow:column;grid-auto-columns:auto;justify-content:space-between;gap:4px}
.steps .big{font-size:clamp(17px,5.3vw,30px)}.stage{display:none}.plot.small{padding-bottom:6px}
.steps .arrow{font-size:16px}.steps .muted{font-size:11.5px}
section{padding:20px 16px 18px;margin:12px 0;border-radius:14px}
.pair{grid-template-columns:minmax(0,1fr)}
.minis{grid-template-columns:repeat(2,minmax(0,1fr));gap:18px 14px}
.rows{display:block}.rows .row{display:grid;grid-template-columns:1fr auto;row-gap:0;margin-bottom:4px}
.rows .rname{grid-row:1;grid-column:1}.rows .rvalue{grid-row:1;grid-column:2}
.rows .track,.rows .axis{grid-row:2;grid-column:1/-1}
.track{height:24px}.amounts .track{height:18px}
.turn{grid-template-columns:1fr;gap:2px}
}
@media print{nav,.tip{display:none}section{break-inside:avoid}}
"""

SCRIPT = """
(() => {
  const tip = document.createElement('div');
  tip.className = 'tip'; tip.setAttribute('role', 'status');
  document.body.append(tip);
  let current = null;
  const hide = () => { tip.classList.remove('on'); if (current) current.classList.remove('hot'); current = null; };
  const show = mark => {
    if (mark === current) return;
    hide(); current = mark; mark.classList.add('hot');
    tip.textContent = mark.dataset.tip;
    const m = mark.getBoundingClientRect(), t = tip.getBoundingClientRect();
    const x = Math.min(Math.max(m.left + m.width / 2 - t.width / 2, 6), innerWidth - t.width - 6);
    const y = m.top - t.height - 10;
    tip.style.transform = `translate(${x}px, ${y < 6 ? m.bottom + 10 : y}px)`;
    tip.classList.add('on');
  };
  const nearest = event => {
    const host = event.target.closest && event.target.closest('.near');
    if (!host) return hide();
    let best = null, least = 40;
    for (const mark of host.querySelectorAll('[data-tip]')) {
      const r = mark.getBoundingClientRect();
      const dx = Math.max(r.left - event.clientX, 0, event.clientX - r.right);
      const dy = Math.max(r.top - event.clientY, 0, event.clientY - r.bottom);
      const away = Math.hypot(dx, dy);
      if (away < least) { least = away; best = mark; }
    }
    if (best) show(best); else hide();
  };
  addEventListener('pointermove', nearest);
  addEventListener('pointerdown', nearest);
  addEventListener('scroll', hide, { passive: true });
  const links = new Map([...document.querySelectorAll('nav a')].map(a => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      links.forEach(a => a.classList.remove('here'));
      const here = links.get(entry.target.id);
      if (here) here.classList.add('here');
    }
  }, { rootMargin: '-20% 0px -70% 0px' });
  document.querySelectorAll('section').forEach(s => seen.observe(s));
})();
"""
