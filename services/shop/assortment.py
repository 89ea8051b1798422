"""The shop's assortment when it opens: what the catalog sells and the inventory has received."""

from __future__ import annotations

from dataclasses import dataclass

CURRENCY = "EUR"

# Pieces of each product in the first delivery: days of orders for a demo that nobody watches.
FIRST_DELIVERY = 1_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """One product. ``cents`` is its price, taxes included."""

    sku: str
    name: str
    category: str
    cents: int
    description: str


ASSORTMENT: tuple[Item, ...] = (
    Item("beans-ethiopia-250", "Ethiopia Yirgacheffe, 250 g", "coffee", 1190, "Washed, light roast: bergamot, peach."),
    Item("beans-ethiopia-1000", "Ethiopia Yirgacheffe, 1 kg", "coffee", 3990, "Washed, light roast: bergamot, peach."),
    Item("beans-brazil-250", "Brazil Cerrado, 250 g", "coffee", 890, "Natural, medium roast: hazelnut, cocoa."),
    Item("beans-brazil-1000", "Brazil Cerrado, 1 kg", "coffee", 2890, "Natural, medium roast: hazelnut, cocoa."),
    Item("beans-colombia-250", "Colombia Huila, 250 g", "coffee", 1090, "Washed, medium roast: caramel, red apple."),
    Item("beans-kenya-250", "Kenya Nyeri, 250 g", "coffee", 1390, "Washed, light roast: blackcurrant, tomato leaf."),
    Item("beans-sumatra-250", "Sumatra Mandheling, 250 g", "coffee", 1150, "Wet-hulled, dark roast: cedar, spice."),
    Item("beans-espresso-1000", "House espresso, 1 kg", "coffee", 2490, "A blend of three, for milk and alone."),
    Item("beans-decaf-250", "Decaf Mexico, 250 g", "coffee", 1090, "Mountain water process: almond, milk chocolate."),
    Item("instant-arabica-100", "Freeze-dried arabica, 100 g", "coffee", 790, "For the train and the tent."),
    Item("tea-sencha-100", "Sencha, 100 g", "tea", 1290, "Steamed green tea from Kagoshima."),
    Item("tea-assam-100", "Assam TGFOP, 100 g", "tea", 890, "Malty black tea; stands milk."),
    Item("tea-darjeeling-100", "Darjeeling first flush, 100 g", "tea", 1690, "Light black tea, picked in March."),
    Item("tea-earl-grey-100", "Earl Grey, 100 g", "tea", 850, "Black tea with oil of bergamot."),
    Item("tea-oolong-100", "Tie Guan Yin oolong, 100 g", "tea", 1590, "Half-oxidised; good for five infusions."),
    Item("tea-rooibos-100", "Rooibos, 100 g", "tea", 590, "Red bush without caffeine."),
    Item("tea-peppermint-50", "Peppermint, 50 g", "tea", 450, "Whole leaves, nothing else."),
    Item("matcha-30", "Matcha, 30 g", "tea", 2290, "Stone-ground, ceremonial grade."),
    Item("grinder-hand", "Hand grinder", "grinders", 8900, "Steel conical burrs, 38 mm; 25 g of beans."),
    Item("grinder-electric", "Electric grinder", "grinders", 24900, "Flat burrs, 54 mm; from espresso to press."),
    Item("grinder-brush", "Grinder brush", "grinders", 790, "Boar bristles, beech handle."),
    Item("dripper-ceramic", "Ceramic dripper", "brewing", 2490, "Cone with spiral ribs, 1 to 4 cups."),
    Item("filters-paper-100", "Paper filters, 100 pieces", "brewing", 690, "Unbleached, for cone drippers."),
    Item("press-glass-1000", "French press, 1 l", "brewing", 3490, "Borosilicate glass, double screen."),
    Item("moka-3", "Moka pot, 3 cups", "brewing", 2990, "Aluminium, made in Piedmont."),
    Item("moka-6", "Moka pot, 6 cups", "brewing", 3790, "Aluminium, made in Piedmont."),
    Item("kettle-gooseneck", "Gooseneck kettle", "brewing", 6990, "0.9 l, holds its temperature to a degree."),
    Item("scale-brewing", "Brewing scale with timer", "brewing", 4490, "0.1 g steps up to 2 kg."),
    Item("teapot-cast-iron", "Cast iron teapot, 0.8 l", "brewing", 5490, "Enamelled inside, with a steel sieve."),
    Item("infuser-steel", "Tea infuser", "brewing", 990, "Fine steel mesh; fits mugs of any size."),
    Item("cup-espresso-2", "Espresso cups, set of 2", "tableware", 1890, "Thick porcelain, 70 ml."),
    Item("cup-cappuccino-2", "Cappuccino cups, set of 2", "tableware", 2290, "Thick porcelain, 180 ml."),
    Item("mug-enamel", "Enamel mug", "tableware", 1290, "350 ml; survives a fall and a fire."),
    Item("bowl-matcha", "Matcha bowl", "tableware", 3290, "Hand-thrown stoneware."),
    Item("flask-steel-500", "Vacuum flask, 0.5 l", "tableware", 2990, "Hot for 8 hours, cold for 20."),
    Item("whisk-bamboo", "Bamboo whisk", "tableware", 1790, "100 prongs, for matcha."),
    Item("honey-linden-500", "Linden honey, 500 g", "pantry", 990, "From one beekeeper in the Uckermark."),
    Item("sugar-rock-250", "Rock sugar, 250 g", "pantry", 390, "Brown crystals for tea."),
    Item("cantuccini-200", "Cantuccini, 200 g", "pantry", 590, "Twice baked, a third of them almonds."),
    Item("chocolate-70-100", "Dark chocolate 70 %, 100 g", "pantry", 490, "Beans from Piura, conched for 48 hours."),
)
