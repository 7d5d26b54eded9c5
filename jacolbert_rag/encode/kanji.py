"""Old forms of kanji and the forms that are used now, one character for one."""

from __future__ import annotations

import re

# The forms in brackets of 常用漢字表 (Cabinet notice of 2010) and the pairs of 人名用漢字別表, and what
# people's names have besides (髙, 﨑, 邉). Where one new form stands for several old ones, as 弁 does,
# each is a pair.
_PAIRS = """
亞亜 惡悪 壓圧 圍囲 醫医 爲為 壹壱 稻稲 飮飲 隱隠 營営 榮栄 衞衛 驛駅 悅悦 閱閲 圓円 鹽塩 緣縁 艷艶 應応
歐欧 毆殴 櫻桜 奧奥 橫横 溫温 穩穏 假仮 價価 畫画 會会 懷懐 壞壊 繪絵 擴拡 殼殻 覺覚 學学 嶽岳 樂楽 渴渇
勸勧 卷巻 寬寛 歡歓 罐缶 觀観 關関 陷陥 巖巌 顏顔 歸帰 氣気 龜亀 僞偽 戲戯 犧犠 舊旧 據拠 擧挙 峽峡 挾挟
狹狭 鄕郷 曉暁 區区 驅駆 勳勲 薰薫 徑径 惠恵 揭掲 溪渓 經経 繼継 莖茎 螢蛍 輕軽 鷄鶏 藝芸 缺欠 儉倹 劍剣
圈圏 檢検 權権 獻献 縣県 險険 顯顕 驗験 嚴厳 效効 廣広 恆恒 鑛鉱 號号 國国 黑黒 濟済 碎砕 齋斎 劑剤 册冊
雜雑 參参 慘惨 棧桟 蠶蚕 贊賛 殘残 絲糸 齒歯 兒児 辭辞 濕湿 實実 舍舎 寫写 釋釈 壽寿 收収 從従 澁渋 獸獣
縱縦 肅粛 處処 緖緒 敍叙 獎奨 將将 燒焼 稱称 證証 乘乗 剩剰 壤壌 孃嬢 條条 淨浄 疊畳 穰穣 讓譲 釀醸 囑嘱
觸触 寢寝 愼慎 晉晋 眞真 盡尽 圖図 粹粋 醉酔 隨随 髓髄 數数 樞枢 瀨瀬 聲声 靜静 齊斉 攝摂 竊窃 專専 戰戦
淺浅 潛潜 纖繊 踐践 錢銭 禪禅 雙双 壯壮 搜捜 插挿 爭争 總総 聰聡 莊荘 裝装 騷騒 增増 臟臓 藏蔵 屬属 續続
墮堕 體体 對対 帶帯 滯滞 臺台 瀧滝 擇択 澤沢 單単 擔担 膽胆 團団 彈弾 斷断 癡痴 遲遅 晝昼 蟲虫 鑄鋳 廳庁
聽聴 敕勅 鎭鎮 遞逓 鐵鉄 轉転 點点 傳伝 黨党 盜盗 燈灯 當当 鬭闘 鬪闘 德徳 獨独 讀読 屆届 繩縄 貳弐 惱悩
腦脳 霸覇 廢廃 拜拝 賣売 麥麦 發発 髮髪 拔抜 蠻蛮 祕秘 濱浜 甁瓶 拂払 佛仏 竝並 變変 邊辺 邉辺 辨弁 辯弁
瓣弁 舖舗 寶宝 萠萌 豐豊 沒没 飜翻 槇槙 萬万 滿満 默黙 彌弥 藥薬 譯訳 豫予 餘余 與与 譽誉 搖揺 樣様 謠謡
遙遥 瑤瑶 來来 賴頼 亂乱 覽覧 龍竜 兩両 獵猟 綠緑 壘塁 淚涙 勵励 禮礼 隸隷 靈霊 齡齢 曆暦 歷歴 戀恋 鍊錬
爐炉 勞労 樓楼 郞郎 祿禄 錄録 灣湾 亙亘 步歩 每毎 戶戸 戾戻 擊撃 虛虚 峯峰 內内 吳呉 娛娯 稅税 說説 脫脱
銳鋭 旣既 槪概 卽即 靑青 淸清 黃黄 巢巣 晚晩 硏研 倂併 餠餅 絕絶 塡填 頰頬 剝剥 噓嘘 嚙噛 囊嚢 搔掻 摑掴
攪撹 瘦痩 禱祷 簞箪 繡繍 繫繋 蔣蒋 蟬蝉 蠟蝋 軀躯 醬醤 鹼鹸 麴麹 麵麺 鷗鴎 壺壷 徵徴 瀆涜 凜凛 堯尭 檜桧
禰祢 曾曽 髙高 﨑崎 舘館 靏鶴 靍鶴 冱冴 曻昇 橢楕 欝鬱 篭籠 礪砺 蠣蛎 賤賎 迩邇 鄰隣 鐮鎌 嶌嶋 驒騨
"""
_NEW_FORMS = str.maketrans({pair[0]: pair[1] for pair in _PAIRS.split()})
_OLD = re.compile(f"[{''.join(map(chr, _NEW_FORMS))}]")  # most texts have none, and a search is faster


def new_forms(text: str) -> str:
    """The text with the forms of kanji that are used now; as long as it was."""
    return text.translate(_NEW_FORMS) if _OLD.search(text) else text
