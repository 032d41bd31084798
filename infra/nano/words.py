"""English words that qwq-nano never sees in training; no I/O.

Training uses synthetic words (see ``tasks.synthetic_word``) and none of these, so every
letter-counting prompt over this list is unseen.
"""

HELD_OUT_WORDS: tuple[str, ...] = tuple(
    """
    strawberry blueberry raspberry cranberry mulberry banana orange papaya pineapple apricot
    avocado cherry grape lemon mango melon nectarine peach pear plum quince tangerine coconut
    mississippi tennessee massachusetts california colorado alabama arizona florida georgia hawaii
    illinois indiana kansas louisiana maryland michigan minnesota missouri montana nebraska nevada
    oklahoma oregon pennsylvania texas vermont virginia washington wisconsin wyoming
    accommodate address aggressive apparent appearance assassin balloon beginning bookkeeper
    bubble butterfly buzzer carriage cassette challenge coffee collaborate committee communicate
    connection correct cottage cotton curriculum daffodil different difficult dilemma disappear
    disappoint discussion eccentric effect embarrass essential exaggerate excellent expression
    flamingo follow football forgotten foundation giraffe glass grammar guarantee hammer happiness
    harass hello hippopotamus hollow hopping illness immediate impossible innovation intelligence
    irregular jazz jellyfish kangaroo keeper kitten ladder lettuce letter little llama lesson
    mammal marshmallow massive message millennium mirror missile misspell muffin mummy narrative
    necessary needle noodle occasion occurrence office opposite oppress parallel parrot passenger
    penny pepper pillow pizza planet possess possession pottery process professor programming
    puzzle quarrel quizzical rabbit recommend reference robbery roller rubber running scissors
    session settle shopping silly skill skull slippery soccer spaghetti spelling squirrel success
    succession suffer sufficient suggest summer supper suppress swimming tattoo terrible tomorrow
    traffic tunnel umbrella unnecessary unsuccessful usually vacuum vanilla village villain
    waffle wallet warrior wedding wheel wheelbarrow willing winner wrapper yellow zucchini zigzag
    algorithm abstract academy accident adventure airplane ancient anchor angel animal answer
    architect argument artist astronaut atmosphere bachelor backpack bakery bamboo basket
    battery beautiful bicycle biology birthday blanket blossom bottle boundary breakfast bridge
    brother building business cabinet calendar camera candle capital captain castle category
    cathedral celebrate century ceremony champion chapter character charcoal chemical chicken
    chocolate circle climate clothes cloud collect college comfort company computer concert
    condition conduct confidence consider container contest continent contract convert cookie
    corner costume country courage cousin creature culture curious current curtain customer
    danger daughter decade decision delicate deliver democracy density deposit describe desert
    detective diamond dictionary digital dinosaur direction discover distance doctor document
    dolphin domestic dragon dynamic eagle earthquake economy education electric elephant
    elevator emergency emotion energy engine enormous entrance envelope environment equator
    evidence example exercise experiment explain explore factory family fantastic favorite
    feather festival fiction flavor flower forest fortune fragile freedom friend frontier
    furniture galaxy gallery garden gentle geography ghost gigantic government gravity harbor
    harmony harvest history holiday horizon hospital hundred hurricane identity imagine
    industry insect instrument interest invention island jacket jewelry journal journey jungle
    justice kitchen knowledge laboratory landscape language laughter lawyer leather legend
    liberty library lightning literature machine magazine magnet manager marathon market
    mathematics mechanic medicine memory merchant microscope midnight military miracle mission
    monkey monument mountain multiply muscle museum musician mystery nation natural neighbor
    network notebook nothing number object ocean orchestra organize original oxygen package
    painter palace paragraph partner pattern peasant pencil perfect photograph physical pirate
    plastic platform pleasure poetry police popular powerful practice prepare president prison
    problem promise protein pyramid quality quarter question rainbow receive recipe religion
    remember reptile republic resource restaurant revolution rhythm river rocket romantic
    sandwich satellite scarecrow scenery schedule science sculpture secret seldom sentence
    servant shadow shelter shoulder signal silence skeleton soldier solution spider spirit
    stadium statue stomach strategy student submarine sugar surface surprise symbol syrup
    system tailor technology telephone telescope temple theater thunder tiger tobacco tornado
    tourist tractor tradition treasure triangle trumpet turtle twelve uniform universe vacation
    vampire vehicle victory violin vitamin volcano voyage weather weekend whisper window winter
    wonderful workshop yesterday zebra
    """.split()
)
