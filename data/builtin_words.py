"""The words of the built-in stories: names, kinds, things and places, each list of one sort.

Every entry of a list fits wherever its list is used, so a plot may take any of them.
"""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(","))


GIRLS = listed(
    "Lily, Mia, Anna, Emma, Sara, Lucy, Zoe, Ella, Ruby, Nora, Amy, Jane, Rosie, Molly, Daisy, Clara, "
    "Sophie, Grace, Maya, Ivy, Alice, Hannah, Leah, Tina, Betty, Olive, Jenny, Kate, Penny, Sally, Eva, "
    "Nina, Fay, Wendy, Iris, Julia, Katie, Maria, Chloe, Stella, Abby, Ada, Bella, Carmen, Dora, Elsie, "
    "Freya, Gina, Heidi, Isla, Joy, Kira, Luna, Megan, Nell, Polly, Rita, Susie, Tess, Vera, Willa, Yara"
)
BOYS = listed(
    "Tom, Ben, Max, Tim, Sam, Leo, Jack, Finn, Noah, Adam, Oscar, Billy, Henry, Luke, Theo, Eli, Oliver, "
    "James, Peter, Danny, Charlie, Jacob, Felix, Hugo, Owen, Ravi, Omar, Nico, Mark, Joe, Toby, Will, "
    "Harry, Alex, Bobby, David, Ethan, Fred, George, Ian, Jay, Kevin, Liam, Martin, Nathan, Otto, Paul, "
    "Quinn, Rob, Simon, Ted, Victor, Walter, Zack, Andy, Carl, Dean, Emil, Gus, Ivan, Kai, Miles, Ned"
)
ANIMAL_GIRLS = listed(
    "Hazel, Willow, Poppy, Clover, Honey, Snowy, Dotty, Cherry, Maple, Tansy, Fern, Bonnie, Pearl, Misty, "
    "Ginger, Juniper, Violet, Peaches, Cocoa, Minty, Blossom, Dolly, Tulip, Velvet, Twinkle, Sunny"
)
ANIMAL_BOYS = listed(
    "Pip, Bruno, Rusty, Biscuit, Acorn, Chester, Scout, Teddy, Basil, Fuzzy, Patch, Nutmeg, Barney, Ziggy, "
    "Pepper, Sprout, Bramble, Monty, Rocky, Waffles, Button, Thumper, Bingo, Pickle, Whiskers, Hopper"
)
# All of them walk on paws: the plots let them run, climb, carry and shake paws.
ANIMALS = listed(
    "rabbit, fox, bear, mouse, squirrel, hedgehog, puppy, kitten, badger, otter, raccoon, beaver, mole, "
    "panda, koala, chipmunk, hamster, wolf cub, lion cub, tiger cub, bunny, bear cub, ferret, lynx"
)
TRAITS = listed(
    "little, kind, curious, brave, cheerful, quiet, clever, gentle, shy, playful, happy, funny, friendly, "
    "lively, thoughtful, helpful, polite, merry, young, small, careful, sweet, silly, eager, honest, "
    "sleepy, busy, dreamy, tidy, messy, loving, adventurous, energetic, patient, imaginative, chatty, bold"
)
CHILD_HOMES = listed(
    "in a little house by the sea, in a small village near the hills, on a farm with a red barn, "
    "in a tall building in the city, in a cottage at the edge of the woods, on a quiet street with big trees, "
    "in a yellow house on a hill, in a town beside a wide river, above a bakery, next to a big park, "
    "in a white house with a blue door, in a cabin by a lake, near an old mill, in a snug little apartment, "
    "in a valley full of apple trees, close to the train station, on an island with a lighthouse, "
    "behind a tiny flower shop, in a brick house with a garden, not far from the beach, across from a library"
)
ANIMAL_HOMES = listed(
    "in a cozy den under an oak tree, in a burrow near the river, in a hollow log, in the middle of a green forest, "
    "at the edge of a sunny meadow, in a hole beneath the roots of a pine, by a shiny pond, "
    "on a hill covered with clover, in a cave behind a waterfall, under a blackberry bush, "
    "in a nest of soft moss, near a bubbling brook, in a thicket of ferns, in the corner of an old orchard, "
    "beside a field of golden wheat, on the bank of a slow stream, among the tall reeds, beneath a mossy stone"
)
HOBBIES = listed(
    "painting, climbing trees, telling jokes, singing songs, looking at the stars, jumping in puddles, "
    "collecting shells, dancing, building towers, watching birds, making up stories, baking, "
    "chasing butterflies, playing hide and seek, drawing pictures, picking berries, exploring, "
    "rolling down hills, counting clouds, whistling, playing the drum, digging holes, asking questions, "
    "making daisy chains, sailing paper boats, skipping stones, solving puzzles, flying kites, "
    "listening to stories, sorting buttons, blowing bubbles, hopping on one foot, helping in the kitchen"
)
GROWNUPS = (
    # (relation, how one calls them, pronoun)
    ("mom", "Mom", "she"), ("dad", "Dad", "he"), ("mother", "Mama", "she"), ("father", "Papa", "he"),
    ("grandma", "Grandma", "she"), ("grandpa", "Grandpa", "he"), ("granny", "Granny", "she"),
    ("aunt", "Aunt May", "she"), ("uncle", "Uncle Joe", "he"), ("aunt", "Aunt Flora", "she"),
    ("uncle", "Uncle Bert", "he"), ("mommy", "Mommy", "she"), ("daddy", "Daddy", "he"),
)
DAYS = listed(
    "One day, One morning, One afternoon, One sunny morning, One bright day, One warm afternoon, One fine day, "
    "One breezy morning, One spring morning, One summer day, On Saturday, On Sunday morning, Early one morning, "
    "On Monday, On Tuesday afternoon, On a lazy Wednesday, On Thursday, On Friday afternoon, One cool fall day, "
    "Right after breakfast, Just after lunch, On the first day of summer, One cloudy day, One quiet afternoon"
)
COLORS = listed(
    "red, blue, green, yellow, purple, orange, pink, brown, white, black, gray, golden, silver, striped, "
    "spotted, turquoise, scarlet, violet, cream, crimson"
)
TOYS = listed(
    "teddy bear, toy truck, toy train, doll, ball, kite, toy robot, toy boat, drum, yo-yo, puppet, whistle, "
    "stuffed elephant, toy car, toy rocket, puzzle, spinning top, toy tractor, toy airplane, toy dinosaur, fire engine, "
    "stuffed owl, toy piano, jump rope, wooden horse, marble, trumpet, toy castle, rag doll, unicorn puppet, hat, scarf, "
    "blanket, backpack, stuffed penguin, toy submarine, toy helicopter, stuffed giraffe"
)
# Small enough for a pocket or a box.
TRINKETS = listed(
    "coin, button, shell, key, bell, feather, ring, marble, stone, ribbon, acorn, thimble, pearl, compass, "
    "medal, crystal, bracelet, locket, badge, whistle, brooch, necklace, spoon, pebble, star-shaped bead"
)
# Things that one can hold one of, with their plurals.
TREATS = (
    ("cookie", "cookies"), ("apple", "apples"), ("muffin", "muffins"), ("pancake", "pancakes"), ("pear", "pears"),
    ("strawberry", "strawberries"), ("cherry", "cherries"), ("sandwich", "sandwiches"), ("banana", "bananas"),
    ("carrot", "carrots"), ("plum", "plums"), ("bun", "buns"), ("cracker", "crackers"), ("pretzel", "pretzels"),
    ("peach", "peaches"), ("orange", "oranges"), ("cupcake", "cupcakes"), ("waffle", "waffles"),
    ("honey cake", "honey cakes"), ("raspberry", "raspberries"), ("walnut", "walnuts"), ("tart", "tarts"),
    ("doughnut", "doughnuts"), ("scone", "scones"), ("apricot", "apricots"), ("dumpling", "dumplings"),
    ("biscuit", "biscuits"), ("mango", "mangoes"), ("blueberry", "blueberries"), ("grape", "grapes"),
)
MEALS = listed(
    "tomato soup, noodles, warm bread, mashed potatoes, porridge, rice and beans, vegetable stew, pumpkin pie, "
    "apple pie, macaroni, corn on the cob, pizza, spaghetti, oatmeal with honey, mushroom soup, toast with jam, "
    "scrambled eggs, nut bread, berry pudding, cheese on toast, carrot soup, lentil soup, fruit salad"
)
NEW_FOODS = listed(
    "spinach, broccoli, beets, peas, mushrooms, cabbage, pumpkin, lentils, asparagus, cauliflower, turnips, "
    "eggplant, radishes, olives, zucchini, celery, parsnips, kale, sprouts, lima beans"
)
DRINKS = listed("warm milk, hot cocoa, lemonade, apple juice, mint tea, cherry juice, orange juice, honey tea, grape juice")
FLOWERS = listed(
    "roses, daisies, tulips, lilies, violets, sunflowers, poppies, bluebells, buttercups, dandelions, "
    "marigolds, daffodils, lavender, lilacs, snowdrops, primroses, peonies, clover, jasmine, honeysuckle"
)
TREES = listed("oak, pine, apple, maple, cherry, willow, birch, pear, chestnut, walnut, plum, cedar, elm, beech, hazel")
BIRDS = listed(
    "robin, sparrow, blackbird, finch, wren, crow, dove, pigeon, blue jay, woodpecker, swallow, magpie, "
    "cuckoo, lark, thrush, goldfinch, starling, nightingale"
)
BUGS = listed("butterfly, bumblebee, ladybug, dragonfly, moth, beetle, grasshopper, cricket, honeybee, firefly, caterpillar")
OUTDOOR_PLACES = listed(
    "the park, the meadow, the big field, the garden, the old orchard, the riverbank, the woods, the hill, "
    "the pond, the playground, the beach, the forest path, the bridge, the market square, the duck pond, "
    "the windmill, the fountain, the vineyard, the barn, the stream, the pasture, the harbor, the village green"
)
HIDING_PLACES = listed(
    "under the bed, behind the sofa, inside a boot, in the laundry basket, under a pile of leaves, "
    "behind the curtain, on top of the cupboard, in the flower pot, under the porch, beside the fireplace, "
    "in the wheelbarrow, behind the rain barrel, inside an old trunk, under the kitchen table, in the tall grass, "
    "beneath the stairs, in the toolbox, behind a stack of books, in the picnic basket, between two cushions, "
    "under a rug, inside the teapot cupboard, in the mailbox, behind the bathtub"
)
# Where someone can hide.
HIDEOUTS = listed(
    "under the bed, behind the sofa, behind the curtain, under the porch, beneath the stairs, under the kitchen table, "
    "in the tall grass, inside the wardrobe, behind the rain barrel, in the attic"
)
# All of them stand in a room, big enough to look strange in the dark.
ROOM_THINGS = listed(
    "lamp, clock, mirror, chair, shelf, wardrobe, desk, bookcase, stool, armchair, coat rack, dresser, easel, "
    "rocking chair, globe, laundry basket, floor lamp, folding screen, toy chest, sewing machine"
)
SHADOW_SHAPES = listed(
    "a dragon, a giant, a monster with horns, a big spider, a tall ghost, a witch, an ogre, a hungry wolf, "
    "a snake, a pirate, a wizard with a pointed hat, a creature with six arms"
)
NIGHT_SOUNDS = (
    # (a sound, where it comes from)
    ("a creak", "the old stairs settling"), ("a tap", "a branch on the window"), ("a hoot", "an owl in the garden"),
    ("a hum", "the refrigerator"), ("a whistle", "the wind in the chimney"), ("a drip", "the kitchen faucet"),
    ("a squeak", "the rusty gate"), ("a rustle", "a mouse in the ivy"), ("a rattle", "the loose shutter"),
    ("a thump", "the cat jumping off a chair"), ("a gurgle", "the water in the pipes"), ("a flap", "a sheet on the clothesline"),
)
GIFTS = listed(
    "book about whales, music box, box of crayons, knitted sweater, paper crown, magnifying glass, flashlight, "
    "wooden flute, snow globe, jar of honey, pair of mittens, tiny telescope, set of paints, paper lantern, "
    "bag of seeds, straw hat, painted plate, tambourine, sketchbook, woolen scarf, umbrella, harmonica, "
    "picture frame, wind chime, clay cup, ant farm, origami crane, globe"
)
DECORATIONS = listed(
    "balloons, paper stars, ribbons, colored lanterns, paper chains, flags, streamers, flower garlands, banners, paper lanterns, pinwheels"
)
GAMES = listed(
    "hide and seek, tag, catch, hopscotch, leapfrog, follow the leader, marbles, cards, checkers, "
    "musical chairs, charades, tug of war, dominoes, bingo, pirates, circus, explorers, astronauts, knights and dragons"
)
FIRST_GROWTHS = listed("a tiny green tip, a thin green shoot, two small leaves, a curly little stem, a pale sprout")
PLANTS = (
    # (whose seed, the plant, how it ends the summer as a past-tense verb phrase)
    ("sunflower", "sunflower", "was as tall as the fence"), ("pumpkin", "pumpkin", "was as round as a drum"),
    ("bean", "beanstalk", "had climbed right up the pole"), ("tomato", "tomato plant", "was heavy with red tomatoes"),
    ("pea", "pea plant", "was full of crisp green pods"), ("melon", "melon", "was as big as a pillow"),
    ("poppy", "poppy", "was bright and red as a kite"), ("corn", "corn plant", "was higher than the gate"),
    ("strawberry", "strawberry plant", "was dotted with sweet berries"), ("daisy", "daisy", "was white and gold like the morning"),
    ("cucumber", "cucumber vine", "had crept all the way along the wall"), ("marigold", "marigold", "was as orange as the evening sun"),
    ("squash", "squash plant", "was wide and leafy"), ("lavender", "lavender bush", "was purple and buzzing with bees"),
)
SKILLS = (
    # (to do what, what goes wrong, the advice, the triumph in the past tense)
    ("ride a bike", "the bike wobbled and tipped over", "Look ahead and keep pedaling", "rode all the way down the lane"),
    ("swim", "water splashed up and there was a lot of coughing", "Kick slowly and breathe", "swam from one side of the pond to the other"),
    ("whistle", "only air came out", "Make your mouth small and round", "whistled a whole tune"),
    ("tie a bow", "the laces came undone again", "Make two loops and cross them", "tied a perfect bow"),
    ("skate", "there was a slip and a loud bump", "Bend your knees and glide", "skated in a big smooth circle"),
    ("juggle", "the balls flew everywhere and bounced away", "Watch the highest ball", "juggled three balls without a single drop"),
    ("bake bread", "the loaf came out flat and hard as a rock", "Let the dough rest and rise", "baked a loaf that was golden and soft"),
    ("play the flute", "the flute gave a dreadful squeak", "Blow softly, as if you cooled your soup", "played a sweet melody from start to end"),
    ("read", "the letters seemed to jump around on the page", "Say one sound at a time", "read a whole page out loud"),
    ("fly a kite", "the kite nosed down into a hedge", "Wait for the wind and let the string go slowly", "flew the kite high above the rooftops"),
    ("climb the rope", "the rope swung and there was a slide back down", "Hold with your feet, too", "climbed right up to the top and rang the bell"),
    ("do a cartwheel", "it ended with a tumble in the grass", "Reach far and keep your legs straight", "did three cartwheels in a row"),
    ("draw a horse", "the horse looked like a potato with legs", "Start with simple shapes", "drew a horse that seemed ready to gallop"),
    ("row a boat", "the boat only went around in circles", "Pull both oars together", "rowed straight to the little dock"),
    ("knit", "the yarn turned into one big knot", "Go slowly, one loop after another", "knitted a scarf with neat rows"),
    ("jump rope", "the rope got tangled and stopped", "Listen to the beat and hop", "jumped twenty times without stopping"),
    ("play chess", "the queen was lost after four moves", "Think before you touch a piece", "won a game with a clever plan"),
    ("catch a ball", "the ball rolled away under a bench", "Keep your eyes on it all the way", "caught the ball ten times in a row"),
)
BROKEN_THINGS = (
    # (thing, what happens to it, how it is mended as a past-tense verb phrase)
    ("kite", "the tail tore on a thorn", "tied on a new tail of bright ribbon"),
    ("chair", "one leg snapped", "glued the leg and wrapped it with string"),
    ("wagon", "a wheel came off", "pushed the wheel back and tightened the bolt"),
    ("music box", "the tiny key broke in two", "made a new key out of copper wire"),
    ("teapot", "the handle cracked", "fixed the handle with strong glue"),
    ("toy boat", "the mast bent and split", "carved a new mast from a stick"),
    ("picture book", "a page ripped right across", "taped the page so carefully that it hardly showed"),
    ("umbrella", "the wind turned it inside out", "bent every rib back into place"),
    ("drum", "the skin got a hole in it", "stretched a new piece of leather over the top"),
    ("clock", "its hands stopped moving", "oiled the little gears until they ticked"),
    ("swing", "one rope frayed and gave way", "hung it up again on a thick new rope"),
    ("birdhouse", "the roof blew off", "nailed on a new roof of cedar wood"),
    ("backpack", "the strap ripped", "sewed the strap with strong thread"),
    ("lantern", "the glass shattered", "put in a new pane and polished it"),
    ("sled", "a runner came loose", "fastened the runner with two brass screws"),
    ("doll", "an arm came off", "stitched the arm back with tiny stitches"),
    ("scooter", "the handlebar slipped", "turned the screw until the handlebar was straight"),
)
CREATURES = (
    # (creature, its trouble, how it was freed as a past-tense verb phrase, how it said thanks)
    ("kitten", "stuck high up in a tree", "leaned a ladder on the trunk and lifted the kitten down", "It purred and rubbed its soft cheek"),
    ("turtle", "lying on its back with its legs in the air", "turned the turtle over very gently", "It blinked slowly and stretched its neck"),
    ("puppy", "limping, with a thorn in its paw", "pulled out the thorn and washed the sore paw", "It wagged its tail so hard that its whole body shook"),
    ("bird", "too weak to fly, with a thread around its wing", "snipped the thread and smoothed the feathers", "It hopped, chirped and spread both wings"),
    ("duckling", "caught in the wire of a fence", "bent the wire aside and set the duckling free", "It quacked and waddled in a happy circle"),
    ("frog", "trapped at the bottom of a deep bucket", "tipped the bucket over onto the grass", "It gave a loud croak and a great leap"),
    ("lamb", "tangled in a bramble bush", "unhooked the brambles one by one", "It bleated and kicked up its heels"),
    ("owl", "with a foot wedged between two branches", "pushed the branches apart with a strong stick", "It hooted twice and bowed its round head"),
    ("butterfly", "fluttering in a sticky web", "loosened the sticky threads with a blade of grass", "It opened its bright wings and danced in the air"),
    ("goat", "standing on a ledge and afraid to come down", "built a ramp of flat stones", "It trotted down and shook its beard"),
    ("pony", "with its rope twisted around a post", "walked the pony slowly around the post until the rope was loose", "It tossed its mane and snorted"),
    ("bat", "lying in a box, dazed and thirsty", "gave the bat a few drops of water from a leaf", "It squeaked and folded its wings like a little cloak"),
    ("swan", "with a plastic ring around its neck", "cut the ring off with round scissors", "It arched its long neck and glided away and back"),
    ("snail", "crossing the path just where the carts went by", "carried the snail to a lettuce leaf on the other side", "It put out its horns and wiggled them"),
    ("calf", "up to its knees in thick mud", "laid planks on the mud and pulled the calf out", "It mooed and gave a big wet lick"),
)
PROMISES = (
    # (to do what, the temptation, doing it as a past-tense verb phrase)
    ("water the neighbor's flowers", "play by the river", "filled the can and watered every single flower"),
    ("feed the chickens before dark", "stay at the fair", "scattered the corn and counted the chickens in"),
    ("return the library book", "build a model ship", "walked to the library and handed the book back"),
    ("bring soup to a sick neighbor", "watch a puppet show", "carried the warm soup down the street without spilling a drop"),
    ("sweep the porch", "fly a kite with the others", "swept every leaf and crumb off the porch"),
    ("collect firewood for the stove", "pick wild strawberries", "gathered twigs and branches until the basket was full"),
    ("save a seat at the show", "watch the fire-eater", "kept the seat free until the very last minute"),
    ("look after the baby goat", "go fishing", "stayed and gave the baby goat its bottle"),
    ("mail an important letter", "stop for ice cream", "ran to the post office and dropped the letter into the box"),
    ("close the barn at dusk", "roast chestnuts by the campfire", "pushed the heavy door shut and slid the bolt"),
    ("help paint the fence", "swim in the lake", "dipped the brush and painted board after board"),
    ("collect the eggs", "slide down the haystack", "collected the eggs and laid them in a basket of straw"),
    ("practice the song for the concert", "ride around the square", "practiced the song until every note was right"),
)
MISHAPS = (
    # (the careless act, what came of it, the thing that suffered, how it is put right)
    ("kicked a ball inside the house", "the blue vase fell and broke into pieces", "vase", "helped glue the pieces together"),
    ("ran through the kitchen", "the bowl of cake batter spilled all over the floor", "batter", "mopped the floor and mixed a new bowl"),
    ("drew on the wall with a crayon", "a big scribble ran across the clean wall", "wall", "scrubbed the wall with soap and a sponge"),
    ("took the paints without asking", "green paint dripped on the rug", "rug", "washed the rug and hung it in the sun"),
    ("played with the scissors", "there was a hole in the good tablecloth", "tablecloth", "sewed a pretty patch over the hole"),
    ("left the gate open", "the hens walked out and ate the lettuce", "lettuce", "chased the hens home and planted new lettuce"),
    ("jumped on the bed", "the lamp tumbled down with a crash", "lamp", "swept up the glass and saved for a new bulb"),
    ("forgot to close the jar", "ants marched all over the honey", "honey", "cleaned the shelf and bought a new jar"),
    ("splashed in the bath", "water ran under the door and soaked the carpet", "carpet", "dried the carpet with ten towels"),
    ("tried on the fancy hat in the rain", "the feathers on it drooped", "hat", "dried the hat and sewed on a new feather"),
    ("climbed on the shelf", "all the jars of jam crashed down", "jam", "picked berries for a new batch of jam"),
    ("leaned on the sewing table", "the box of pins scattered everywhere", "pins", "gathered every pin with a magnet"),
)
SHOW_ACTS = listed(
    "sing a song, say a poem, dance, play the violin, do a magic trick, tell a joke, be the moon in the play, "
    "play the xylophone, read a story aloud, walk the low tightrope, play the trombone, imitate a rooster, do acrobatics"
)
TREASURE_SPOTS = listed(
    "under the old oak, behind the waterfall, beside the broken well, at the foot of the lighthouse, "
    "beneath the stone bench, inside a hollow stump, under the third plank of the bridge, behind the rose bush, "
    "in the corner of the attic, near the scarecrow, under a flat rock by the shore, below the crooked pine, "
    "at the end of the tunnel, beside the rusty anchor, in the ruins on the hill"
)
LANDMARKS = listed(
    "a crooked signpost, a bridge of logs, a tall stone tower, a field of thistles, a red mailbox, a puddle like a mirror, "
    "a bush with white berries, a row of beehives, a broken cart, an empty bird nest, a ring of toadstools, "
    "a trickle of water, a statue of a lion, an iron gate, a tree with a face in its bark, a heap of smooth boulders"
)
# Strangers, each with a pronoun.
HELPERS = (
    ("a farmer", "she"), ("a baker", "he"), ("a mail carrier", "she"), ("a police officer", "he"), ("a gardener", "he"),
    ("a fisherman", "he"), ("a librarian", "she"), ("a beekeeper", "she"), ("a shopkeeper", "he"), ("a shepherd", "he"),
    ("a nurse", "she"), ("a bus driver", "he"), ("a painter", "she"), ("a carpenter", "she"), ("a miller", "he"),
    ("a teacher", "she"), ("a sailor", "he"), ("an engineer", "she"), ("a street musician", "he"), ("a potter", "she"),
)
WISE_ANIMALS = (
    ("an old owl", "she"), ("a wise tortoise", "he"), ("an old goose", "she"), ("a gray donkey", "he"), ("a tall deer", "she"),
    ("a slow old toad", "he"), ("a friendly crow", "she"), ("a proud stork", "he"), ("a busy hen", "she"), ("a big moose", "he"),
    ("a heron", "he"), ("a white goose", "she"), ("a mother duck", "she"), ("an elderly ram", "he"), ("a kindly cow", "she"),
)
INDOOR_GAMES = (
    # (to do what, how they do it, what comes of it)
    ("build a fort", "They draped blankets over two chairs and crawled inside with a flashlight", "fort"),
    ("put on a puppet show", "They made puppets out of old socks and cut a stage from a cardboard box", "show"),
    ("make a ship", "They turned the table over, tied a sheet to a broom and sailed across the rug", "ship"),
    ("open a bakery", "They put on aprons, rolled out dough and cut it into moons and stars", "bakery"),
    ("make a zoo", "They lined up every stuffed animal and wrote a little sign for each one", "zoo"),
    ("build a train", "They placed boxes in a row, drew wheels on them and punched paper tickets", "train"),
    ("start a band", "They drummed on pots, shook jars of rice and blew on a comb", "band"),
    ("fold paper animals", "They folded frogs, swans and a giraffe until the table was covered", "paper zoo"),
    ("make a space station", "They taped foil to a box, painted dials on it and counted down from ten", "space station"),
    ("run a hospital for toys", "They bandaged the bears, took their temperature and tucked them in", "hospital"),
)
BUILDS = (
    # (thing, of what, what it has at first, how it is lost)
    ("sandcastle", "sand", "a tower with a moat", "a wave rolled in and washed half of it away"),
    ("treehouse", "boards", "a crooked floor and a ladder", "the whole floor slid down with a clatter"),
    ("snowman", "snow", "a round belly and a stout chest", "the head rolled off and burst"),
    ("raft", "logs", "a deck tied with rope", "the knots slipped and the logs drifted apart"),
    ("block tower", "blocks", "a wide base and seven floors", "somebody sneezed and it all fell down"),
    ("go-cart", "crates", "four wheels and a steering rope", "one wheel rolled off down the lane"),
    ("dam", "pebbles", "a curved wall across the brook", "the water pushed through the middle"),
    ("birdhouse", "planks", "four walls and a round door", "the roof slid off sideways"),
    ("cardboard castle", "cardboard", "two turrets and a drawbridge", "a gust of wind flattened it"),
)
SAD = listed("sad, upset, gloomy, unhappy, miserable, sorry, downcast, heartbroken")
GLAD = listed("happy, glad, proud, cheerful, delighted, joyful, thrilled, pleased, overjoyed, grateful")
SCARED = listed("scared, afraid, frightened, nervous, worried, uneasy, alarmed, anxious")
