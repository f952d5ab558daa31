"""Vocabularies of the two parts of the benchmark: nothing but function words is in both."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# Per language: function words (shared by the parts), then content words (the first half tunes, the second is held out).
_LANGUAGES = {
    "english": (
        "the of and to in is was it for on as with at by from that this not but which were be have are an or his her",
        (
            "river town bridge market mill stone wood year house road hill field grain salt ship king council near people"
            " trade small great first north south building window garden letter village winter evening church farmer soldier"
            " answer number square sum total value equation proof angle circle energy velocity cell protein planet orbit"
            " engine voltage budget invoice customer delivery contract meeting schedule battery sensor memory network server"
            " forest mountain valley island harbour captain merchant painter teacher doctor lesson paper color season summer"
        ),
    ),
    "german": (
        "der die das und in zu den mit von für auf ist im dem nicht ein eine als auch es an werden aus er hat dass sie",
        (
            "Fluss Stadt Brücke Markt Mühle Stein Holz Jahr Haus Straße Hügel Feld Getreide Salz Schiff König Rat Leute Handel"
            " Fenster Garten Brief Dorf Winter Abend Kirche Bauer Soldat Antwort Zahl Summe Wert Gleichung Winkel Kreis Energie"
            " Zelle Planet Motor Spannung Rechnung Kunde Lieferung Vertrag Sitzung Speicher Netz Wald Gebirge Tal Insel Hafen"
        ),
    ),
    "spanish": (
        "el la de que y en un ser se no haber por con su para como estar tener le lo todo pero más hacer o poder este ir",
        (
            "río ciudad puente mercado molino piedra madera año casa camino colina campo grano sal barco rey consejo gente comercio"
            " ventana jardín carta aldea invierno tarde iglesia granjero soldado respuesta número suma valor ecuación ángulo"
            " círculo energía célula planeta motor factura cliente entrega contrato reunión memoria red bosque montaña valle isla"
        ),
    ),
    "russian": (
        "и в не на я быть он с что а по это она этот к но они мы весь который из у то за свой весь год от так о для ты же",
        (
            "река город мост рынок мельница камень дерево дом дорога холм поле зерно соль корабль король совет люди торговля окно"
            " сад письмо деревня зима вечер церковь крестьянин солдат ответ число сумма значение уравнение угол круг энергия"
            " клетка планета двигатель счёт клиент доставка договор встреча память сеть лес гора долина остров гавань капитан"
        ),
    ),
    "chinese": (
        "的 一 是 不 了 在 有 我 他 这 中 大 来 上 个 国 到 说 们 为",
        (
            "河 城 桥 市 石 木 年 家 路 山 田 米 盐 船 王 人 商 窗 园 信 村 冬 夜 教 农 兵 答 数 和 值 式 角 圆 能 胞 星 机 账 客 送 约 会"
            " 存 网 林 谷 岛 港 师 医 课 纸 色 季 夏 春 秋 雨 雪 风 云 花 草 鸟 鱼 马 牛 羊 狗 火 金 银 铜 铁 书 画 歌 舞 茶 酒 饭 菜"
        ),
    ),
}
_SYLLABLES = {
    "tuning": [c + v for c in "bdfghjklm" for v in ("a", "e", "i", "o", "u", "ar", "en", "il")],
    "held-out": [
        c + v
        for c in ("n", "p", "r", "s", "t", "v", "w", "z", "st")
        for v in ("a", "e", "i", "o", "us", "or", "un", "ay")
    ],
}


@dataclass
class Words:
    """One part's words in one language, and what is made of them; a pure function of the generator's state."""

    part: str
    language: str
    rng: random.Random
    function: list[str] = field(init=False)
    content: list[str] = field(init=False)

    def __post_init__(self) -> None:
        function, content = _LANGUAGES[self.language]
        every = content.split()
        half = len(every) // 2
        self.function = function.split()
        self.content = every[:half] if self.part == "tuning" else every[half:]
        self.joint = "" if self.language == "chinese" else " "
        self.stop = "。" if self.language == "chinese" else "."

    def name(self) -> str:
        if self.language == "chinese":
            return "".join(self.rng.choices(self.content, k=self.rng.randint(2, 3)))
        return "".join(self.rng.choices(_SYLLABLES[self.part], k=self.rng.randint(2, 4))).capitalize()

    def names(self, count: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.name()] = None
        return list(found)

    def number(self) -> int:
        return int(10 ** self.rng.uniform(0.5, 4.5))

    def word(self) -> str:
        chance = self.rng.random()
        if chance < 0.45:
            return self.rng.choice(self.function)
        if chance < 0.93:
            return self.content[min(int(self.rng.expovariate(4.0) * len(self.content)), len(self.content) - 1)]
        return self.name() if chance < 0.98 else str(self.number())

    def phrase(self, words: int) -> str:
        return self.joint.join(self.word() for _ in range(words))

    def sentence(self, words: int | None = None) -> str:
        text = self.phrase(words or self.rng.randint(5, 18))
        return text[0].upper() + text[1:] + self.stop

    def prose(self, words: int) -> str:
        out, made = [], 0
        while made < words:
            length = self.rng.randint(5, 18)
            out.append(self.sentence(length))
            made += length
            if self.rng.random() < 0.12:
                out.append("\n\n")
        text = self.joint.join(out) if self.joint else "".join(out)
        return text.replace(" \n\n ", "\n\n").strip()


LANGUAGES = list(_LANGUAGES)
