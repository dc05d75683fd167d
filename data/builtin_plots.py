"""The plots of the built-in stories: each tells one story to its end through a `Teller`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from data import builtin_words as words

Entry = TypeVar("Entry")

# The sound of the first letter decides, not its spelling: "a unicorn", "an honest fox".
ARTICLE_EXCEPTIONS = {"unicorn": "a", "honest": "an"}


def a(phrase: str) -> str:
    """`phrase` with its indefinite article."""
    first = phrase.split(" ", 1)[0]
    article = ARTICLE_EXCEPTIONS.get(first, "an" if first[0] in "aeiou" else "a")
    return f"{article} {phrase}"


def definite(phrase: str) -> str:
    """`phrase`, which starts with an indefinite article, with the definite one."""
    return "the " + phrase.split(" ", 1)[1]


def capital(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


class Character:
    """Someone with a name and pronouns; `kind` is "girl", "boy", an animal, or a relation."""

    def __init__(self, name: str, kind: str, he: str):
        she = he == "she"
        self.name, self.kind, self.he = name, kind, he
        self.him = "her" if she else "him"
        self.his = "her" if she else "his"
        self.He = capital(he)
        self.His = capital(self.his)

    def __str__(self) -> str:
        return self.name


class Teller:
    """Casts a story and writes it down, sentence by sentence.

    The hero, the friend and the grown-up are chosen once, so a plot can only tell a
    coherent story about them. `say` takes the alternative phrasings of one beat.
    """

    def __init__(self, rng: random.Random):
        self._random = rng.random
        self._paragraphs: list[list[str]] = [[]]
        self.animals = self.chance(0.35)
        self.hero = self._someone()
        self.friend = self._someone(other_than=self.hero)
        kind, name, he = self.pick(words.GROWNUPS)
        self.grownup = Character(name, kind, he)
        self.trait = self.pick(words.TRAITS)
        # How the friend is called when first met.
        self.friend_called = f"{self.hero.his} friend {self.friend}" + (f" the {self.friend.kind}" if self.animals else "")
        self.hand = "paw" if self.animals else "hand"
        self.everyone = "all the animals" if self.animals else "all the children"

    def _someone(self, other_than: Character | None = None) -> Character:
        she = self.chance(0.5)
        while True:
            if self.animals:
                name = self.pick(words.ANIMAL_GIRLS if she else words.ANIMAL_BOYS)
                kind = self.pick(words.ANIMALS)
            else:
                name = self.pick(words.GIRLS if she else words.BOYS)
                kind = "girl" if she else "boy"
            if other_than is None or (name != other_than.name and (not self.animals or kind != other_than.kind)):
                return Character(name, kind, "she" if she else "he")

    def chance(self, share: float) -> bool:
        return self._random() < share

    def pick(self, entries: Sequence[Entry]) -> Entry:
        # Not `random.choice`, whose stream Python may change; `random()` is promised to stay.
        return entries[int(self._random() * len(entries))]

    def pick_two(self, entries: Sequence[Entry]) -> tuple[Entry, Entry]:
        first = int(self._random() * len(entries))
        second = int(self._random() * (len(entries) - 1))
        return entries[first], entries[second + (second >= first)]

    def stranger(self, entries: Sequence[tuple[str, str]]) -> Character:
        """Someone without a name: `kind` is how to call them at first, the name afterwards."""
        kind, he = self.pick(entries)
        return Character(definite(kind), kind, he)

    def say(self, *phrasings: str) -> None:
        """One of the phrasings, added to the paragraph."""
        self._paragraphs[-1].append(self.pick(phrasings))

    def maybe(self, *phrasings: str) -> None:
        """Like `say`, in two stories out of three."""
        if self.chance(0.67):
            self.say(*phrasings)

    def paragraph(self) -> None:
        self._paragraphs.append([])

    def text(self) -> str:
        return "\n".join(" ".join(sentences) for sentences in self._paragraphs)

    def opening(self) -> None:
        """Who the story is about, and where the hero lives."""
        h = self.hero
        who = f"{a(self.trait)} {h.kind} named {h}"
        home = self.pick(words.ANIMAL_HOMES if self.animals else words.CHILD_HOMES)
        hobby, hobby_too = self.pick_two(words.HOBBIES)
        if self.chance(0.38):
            self.say(
                f"Once upon a time, there was {who}. {h.He} lived {home}.",
                f"Once upon a time, {who} lived {home}.",
                f"Once upon a time, {home}, there lived {who}.",
                f"Once upon a time, there was {who}. {h} loved {hobby}.",
                f"Once upon a time, there was {who} who liked {hobby} more than anything.",
            )
        else:
            self.say(
                f"There once was {who}. {h.He} loved {hobby} and {hobby_too}.",
                f"{h} was {a(self.trait)} {h.kind}. {h.He} lived {home}.",
                f"{h} was {a(self.trait)} {h.kind} who loved {hobby}.",
                f"{capital(home)}, there lived {who}.",
                f"{capital(who)} lived {home}. {h} liked {hobby} best of all.",
                f"Long ago, {who} lived {home}.",
                f"Have you ever heard of {h}? {h} was {a(self.trait)} {h.kind} who lived {home}.",
                f"This is the story of {who}.",
                f"{h} lived {home} and spent many hours {hobby}. {h.He} was {a(self.trait)} {h.kind}.",
                f"Everybody knew {h}, the {self.trait} {h.kind} who was always {hobby}.",
            )

    def outdoors(self) -> None:
        """A glimpse of nature."""
        bird, bug, tree = self.pick(words.BIRDS), self.pick(words.BUGS), self.pick(words.TREES)
        color, flowers = self.pick(words.COLORS), self.pick(words.FLOWERS)
        self.maybe(
            f"{capital(a(bird))} sang in the {tree} tree.",
            f"{capital(a(color))} {bug} sat on a leaf and did not move.",
            f"The air smelled of {flowers}.",
            f"White clouds drifted slowly over the {tree} trees.",
            f"{capital(a(bird))} hopped along the path, looking for seeds.",
            f"A soft wind shook the leaves of the {tree} tree.",
            f"Somewhere far away, {a(bird)} called twice.",
            f"{capital(flowers)} bloomed everywhere, and {a(bug)} rested on a blade of grass.",
        )

    def bedtime(self) -> None:
        """A last look at the hero."""
        h, drink, meal = self.hero, self.pick(words.DRINKS), self.pick(words.MEALS)
        self.maybe(
            f"That night, {h} fell asleep with a smile.",
            f"At supper there was {drink} for everyone, and {h} told the whole story twice.",
            f"In the evening, the family shared {meal} and talked about the day.",
            f"When the moon came up, {h} was already dreaming.",
            f"{h} went to bed tired and {self.pick(words.GLAD)}.",
            f"Before bed, {h} drank a cup of {drink} and looked at the stars.",
            f"And for dinner there was {meal}, which tasted better than ever.",
        )


def lost_toy(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    color, toy, thing = t.pick(words.COLORS), t.pick(words.TOYS), t.pick(words.ROOM_THINGS)
    first, second = t.pick_two(words.HIDING_PLACES)
    t.opening()
    t.say(
        f"{h} had {a(color)} {toy} and took it everywhere.",
        f"{h.His} favorite toy was {a(color)} {toy}.",
        f"Of all {h.his} things, {h} loved {h.his} {color} {toy} the most.",
        f"Every night {h} put {h.his} {color} {toy} next to {h.his} pillow.",
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, the {toy} was gone.",
        f"{t.pick(words.DAYS)}, {h} reached for the {toy}, but it was not there.",
        f"{t.pick(words.DAYS)}, {h} wanted to play, but the {toy} was nowhere to be seen.",
    )
    t.say(
        f'"Where is my {toy}?" {h} cried.',
        f'"Oh no! I lost my {toy}!" said {h}.',
        f'"My {toy} has disappeared," {h} whispered, and a tear rolled down {h.his} cheek.',
        f"{h} felt very {t.pick(words.SAD)}.",
    )
    t.say(
        f"{h} looked {first}, but there was only dust.",
        f"First {h} searched {first}. Nothing was there except an old sock.",
        f"{h} peeked {first} and behind the {thing}. No luck.",
    )
    t.paragraph()
    t.say(
        f'{capital(t.friend_called)} came by and saw {h.his} long face. "I will help you look," said {f}.',
        f'{capital(t.friend_called)} knocked on the door. "Two can search better than one," {f} said.',
        f"\"Don't give up,\" said {t.friend_called}. \"Let's think. Where did you play last?\"",
    )
    if t.chance(0.5):
        t.say(
            f'{h} closed both eyes and tried to remember. "I was playing with it yesterday, and then I got hungry."',
            f'{h} thought hard. "I had it when we were playing {t.pick(words.GAMES)}," {h.he} said at last.',
        )
        t.say(
            f"They walked back the same way, step by step. And there it was, {second}!",
            f"So they did everything again, just like yesterday. Then {f} pointed. The {toy} was {second}!",
        )
    else:
        t.say(
            f'They asked {h.his} {g.kind}. {g} smiled and said, "Did you look {second}?"',
            f'{h.His} {g.kind} heard them. "I saw something {color} {second} this morning," said {g}.',
        )
        t.say(
            f"They hurried to see. {g} was right! The {color} {toy} was waiting there.",
            f"{h} ran as fast as {h.he} could, and there was the {toy}, safe and sound.",
        )
    t.paragraph()
    t.say(
        f'{h} hugged the {toy} tightly. "Thank you, {f}!"',
        f'"You found it!" {h} shouted and danced around {f}.',
        f"{h} laughed with joy and gave {f} a big hug.",
    )
    t.say(
        f"From then on, {h} put the {toy} back in its place every evening.",
        f"After that, {h} always remembered where {h.he} left {h.his} things.",
        f"{h} let {f} play with the {toy} all afternoon, because good friends share.",
        f"{h} learned that it helps to stay calm and to ask a friend.",
    )
    t.bedtime()


def sharing_food(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    one, many = t.pick(words.TREATS)
    place = t.pick(words.OUTDOOR_PLACES)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h.his} {g.kind} gave {h.him} a basket of {many}.",
        f"{t.pick(words.DAYS)}, {h} packed a bag with {many} and walked to {place}.",
        f'{t.pick(words.DAYS)}, {h} found a whole plate of {many} on the table. "They are for you," said {h.his} {g.kind}.',
    )
    t.say(
        "They were fresh and smelled wonderful.",
        f"{h.His} tummy rumbled with hunger.",
        f'"Mmm, {many} are my favorite!" said {h}.',
        f'"I am going to eat every one of them," {h} thought.',
    )
    t.say(
        f"{h} sat down near {place} to eat.",
        f"{h} carried them to a shady spot by {place}.",
        f"On a bench near {place}, {h} took the first bite.",
    )
    t.outdoors()
    t.paragraph()
    t.say(
        f"Then {t.friend_called} came along. {f} looked at the {many} and swallowed.",
        f"Just then, {h} saw {t.friend_called} sitting alone with nothing to eat.",
        f'A moment later {t.friend_called} sat down beside {h.him}. "I forgot my lunch," {f} said quietly.',
    )
    if t.chance(0.5):
        t.say(
            f'"May I have one {one}, please?" asked {f}.',
            f'"Those look so good," {f} sighed. "Could I try one?"',
        )
        t.say(
            f'"No, they are mine," said {h}, and pulled the {many} closer.',
            f'{h} shook {h.his} head. "I want them all," {h.he} said.',
        )
        t.say(
            f"{f} walked away with {f.his} head down. Suddenly the {many} did not taste sweet anymore.",
            f"{f} said nothing and looked at the ground. {h} felt a strange lump in {h.his} throat.",
        )
        t.say(
            f'{h} remembered how it feels to be left out. "Wait!" {h.he} called. "I am sorry. Come and eat with me."',
            f'"Come back, {f}!" {h} shouted. "I was greedy. Half of them are yours."',
        )
    else:
        t.say(
            f"{h} counted the {many}. There were only a few left.",
            f"{h} looked at the biggest {one} and thought for a moment.",
        )
        t.say(
            f'Then {h} held out {h.his} {t.hand}. "Here, take this one. It is the best one."',
            f"\"Let's share,\" said {h}. \"One for you and one for me.\"",
        )
        t.say(
            f'"Really? Thank you!" said {f}, with shining eyes.',
            f'{f} smiled from ear to ear. "You are very kind, {h}."',
        )
    t.paragraph()
    t.say(
        "They ate together and told each other funny stories.",
        "Side by side, they munched until only crumbs were left.",
        f"They shared every last {one}, and the crumbs went to {a(t.pick(words.BIRDS))}.",
    )
    t.say(
        f"The next day, {f} brought {t.pick(words.MEALS)} and shared it with {h}.",
        f"Afterward, they played {t.pick(words.GAMES)} until the sun went down.",
        f'"Tomorrow I will bring {t.pick(words.DRINKS)} for both of us," {f} promised.',
    )
    t.say(
        f"{h} learned that food tastes better when you share it.",
        f'"Sharing made me feel {t.pick(words.GLAD)}," {h} told {h.his} {g.kind} that evening.',
        f"And from that day on, {h} always packed enough for two.",
        "Half a basket and a good friend are more than a full basket alone.",
    )


def fear_of_dark(t: Teller) -> None:
    h, g = t.hero, t.grownup
    shape, (sound, source), thing = t.pick(words.SHADOW_SHAPES), t.pick(words.NIGHT_SOUNDS), t.pick(words.ROOM_THINGS)
    t.opening()
    t.say(
        f"{h} was brave all day long, but at night {h.he} was {t.pick(('afraid', 'scared', 'frightened', 'terrified'))} of the dark.",
        f"There was only one thing that {h} did not like. {h.He} did not like the dark.",
        f"When the sun went down, {h} always felt {t.pick(words.SCARED)}.",
    )
    t.paragraph()
    t.say(
        f"One night, {h} lay in bed with the blanket up to {h.his} nose.",
        f"One windy night, {h} woke up, and the room was as black as ink.",
        f"One evening, the light went out, and {h} could not see a thing.",
    )
    t.say(
        f"On the wall there was a shadow. It looked like {shape}!",
        f"In the corner stood something dark. Was it {shape}?",
        f"{h} saw a shape that looked just like {shape}.",
    )
    t.say(
        f"Then came {sound}, and then another one.",
        f"Suddenly there was {sound} in the silence.",
        f"And what was that? {capital(sound)}!",
    )
    t.say(
        f"{h.His} heart went thump, thump, thump.",
        f"{h} held {h.his} breath and did not move.",
        f"{h} hid under the pillow and shivered.",
    )
    t.say(
        f'"{g}! Please come!" {h} called.',
        f'"Help! There is something in my room!" cried {h}.',
        f'"Is anybody awake?" {h} whispered. "I am {t.pick(words.SCARED)}."',
    )
    t.paragraph()
    t.say(
        f"{h.His} {g.kind} came in with a candle and sat on the edge of the bed.",
        f"The door opened, and {h.his} {g.kind} came in on soft slippers.",
        f"{h.His} {g.kind} hurried in and held {h.his} {t.hand}.",
    )
    if t.chance(0.5):
        t.say(
            f"\"Let's find out together,\" said {g}. They tiptoed across the floor.",
            f'"Shall we look at it with a light?" asked {g}. {h} nodded bravely.',
        )
        t.say(
            f"The dark shape was only the {thing} with a coat on it. And the noise was just {source}.",
            f"It was not {shape} at all. It was the {thing}! And the noise was only {source}.",
        )
    else:
        t.say(
            f'"Look," said {g}, "a shadow is only a place where the light cannot go." {g.He} made a rabbit with {g.his} {t.hand}s on the wall.',
            f'{g} put {g.his} {t.hand}s in front of the light, and a shadow bird flew over the wall. "Now you try," {g} said.',
        )
        t.say(
            f'{h} made a snail, a crab and a barking dog. {h.He} began to giggle. "And the noise is just {source}," said {g}.',
            f'{h} made a duck with a big beak. "Quack!" {h.he} laughed. When the noise came again, {h.he} listened closely. It was only {source}.',
        )
    t.say(
        f'{h} laughed. "The dark is only the day with its eyes closed," {h.he} said.',
        f'"So there was nothing to fear," said {h} with a long yawn.',
        f'"Hello, dark," {h} said softly. "I am not afraid of you now."',
    )
    t.paragraph()
    t.say(
        f"{g} left the door open a little, and a thin line of light lay on the floor.",
        f"{g} hung a small {t.pick(words.COLORS)} lantern by the window.",
        f'"Look at the stars," said {g}. "They need the dark to shine."',
        f"{g} hummed an old lullaby and kissed {h} on the forehead.",
    )
    t.say(
        f"The next night, {h} turned off the light without any help.",
        f"After that, {h} liked to lie awake for a while and guess the sounds of the night.",
        f"{h} slept deeply until the {t.pick(words.BIRDS)} sang in the morning.",
        f"From then on, {h} always looked twice before {h.he} got scared.",
    )


def new_friend(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    place, game, toy = t.pick(words.OUTDOOR_PLACES), t.pick(words.GAMES), t.pick(words.TOYS)
    newcomer = f"{a(f.kind)} named {f}"
    t.opening()
    t.say(
        f"But {h} had nobody to play with.",
        f"{h} had many toys, but no friend.",
        f"Still, {h} sometimes felt lonely.",
        f"{h} wished for a friend with all {h.his} heart.",
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h} saw {newcomer} at {place}. {f} was new there.",
        f"{t.pick(words.DAYS)}, a new family moved in nearby. With them came {newcomer}.",
        f"{t.pick(words.DAYS)}, {h} went to {place} and met {newcomer}, who was standing all alone.",
    )
    t.outdoors()
    if t.chance(0.5):
        t.say(
            f"{h} wanted to say hello, but no words came out. {h.He} was too shy.",
            f'"What if {f} does not like me?" {h} thought.',
            f"{h} hid behind a tree and peeked out.",
        )
        t.say(
            f'{h.His} {g.kind} gave {h.him} a little push. "A smile is a good start," said {g}.',
            f'"Just say your name," whispered {h.his} {g.kind}. "That is all it takes."',
        )
        t.say(
            f'So {h} took a deep breath, walked over and said, "Hi, I am {h}. Do you want to play?"',
            f'{h} smiled a very small smile. "My name is {h}," {h.he} said. "What is yours?"',
        )
    else:
        t.say(
            f"{f} was holding {a(toy)} and looking at {f.his} feet.",
            f"{f} had dropped {f.his} {toy} in the mud and was trying not to cry.",
        )
        t.say(
            f'{h} walked right up. "That is a great {toy}," {h.he} said. "Can I see it?"',
            f'"I like your {toy}," said {h}. "Let me help you clean it."',
        )
        t.say(
            f'{f} looked up in surprise. "You can hold it if you want," {f} answered.',
            f'{f} blushed. "Thanks," {f} said. "I am {f}. I do not know anyone here."',
        )
    t.paragraph()
    t.say(
        f"Soon they were playing {game} together.",
        f"Before long, the two were laughing over a game of {game}.",
        f"{f} knew how to play {game}, and {h} wanted to learn it.",
    )
    t.say(
        f"{f} was fast, and {h} was clever, so they made a good team.",
        f"They found out that both of them loved {t.pick(words.HOBBIES)}.",
        f"When {h} stumbled and fell, {f} helped {h.him} up and brushed off the dirt.",
        "They discovered that they laughed at the very same jokes.",
    )
    t.maybe(
        f"At noon, they shared {t.pick(words.MEALS)} on a blanket.",
        f"{h} showed {f} the best places to hide.",
        "They even made up a secret handshake.",
    )
    t.paragraph()
    t.say(
        f'When it was time to go home, {f} asked, "Will you come back tomorrow?"',
        f'The sun sank lower, and {f} had to leave. "Shall we meet again?" asked {f}.',
        f'"This was the best day ever," said {f} at the end.',
    )
    t.say(
        f'"Yes!" said {h}. "Tomorrow and every day after that."',
        f'"I will be here before you," {h} promised with a grin.',
        f'{h} nodded so hard that {h.he} almost fell over. "Of course!"',
    )
    t.say(
        f"{h} skipped all the way home. {h.He} was not lonely anymore.",
        f"That is how {h} and {f} became best friends.",
        f"{h} learned that one friendly word can open a door.",
        "Now there were two of them, and everything was twice as much fun.",
    )


def learning_skill(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    skill, failure, advice, triumph = t.pick(words.SKILLS)
    t.opening()
    t.say(
        f"More than anything, {h} wanted to learn how to {skill}, just like {t.friend_called}.",
        f"{h} had one big dream. {h.He} wanted to {skill} as well as {t.friend_called}.",
        f"{capital(t.friend_called)} could {skill}, and {h} wished to do it, too.",
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h} tried it for the first time, but {failure}.",
        f"{t.pick(words.DAYS)}, {h} was ready to begin. Sadly, {failure}.",
        f"{t.pick(words.DAYS)}, {h} gave it a try. Oh dear, {failure}!",
    )
    t.say(
        f"{h} tried again, and the same thing happened.",
        "The second time was no better, and the third time was even worse.",
        f'"That was only practice," {h} said, but it went wrong again.',
    )
    t.say(
        f"\"I can't do it!\" {h} groaned and stamped {h.his} foot.",
        f'"It is too hard," {h} said with tears in {h.his} eyes.',
        f"{h} felt {t.pick(words.SAD)} and wanted to give up.",
        f'"I will never learn this," {h} grumbled.',
    )
    t.paragraph()
    t.say(
        f'{h.His} {g.kind} had watched from the window. "{advice}," said {g}. "And try once more."',
        f'Then {h.his} {g.kind} sat down next to {h.him}. "Nobody can do it the first time," {g} said. "{advice}."',
        f'"Do you know how often I failed?" asked {h.his} {g.kind}. "At least a hundred times. Here is the trick. {advice}."',
    )
    if t.chance(0.5):
        t.say(
            f"{h} practiced on Monday. {h.He} practiced on Tuesday. By Friday, it was going a little better.",
            f"Every day after school, {h} practiced for an hour, and every day it got a bit easier.",
            f"{h} practiced in the morning, at noon and in the evening for a whole week.",
        )
    else:
        t.say(
            f"{h} wiped {h.his} face and nodded. {h.He} did it slowly this time, very slowly.",
            f"{h} repeated the words under {h.his} breath and started over.",
        )
        t.say(
            "It was not perfect, but it was better than before.",
            f"For a second it worked, and {h.his} eyes grew wide.",
        )
    t.say(
        f"And then it happened. {h} {triumph}!",
        f"At last, {h} {triumph}.",
        f"Then came the big moment. {h} {triumph}!",
        f"Finally, with {f} cheering nearby, {h} {triumph}.",
    )
    t.paragraph()
    t.say(
        f'"I did it! I did it!" {h} shouted.',
        f'"Did you see that?" {h} yelled, jumping up and down.',
        f"{h} was so {t.pick(words.GLAD)} that {h.he} turned around three times.",
    )
    t.say(
        f'{g} clapped and said, "You did not give up. That is why you can do it now."',
        f'"I knew you could," said {g} and gave {h.him} a hug.',
        f'{f} came running. "Will you show me how?" asked {f}. "Sure," said {h}. "{advice}."',
    )
    t.say(
        f"{h} learned that practice makes hard things easy.",
        f"Since that day, {h} never says \"I can't.\" {h.He} says \"I can't yet.\"",
        f"And what do you think {h} wanted to learn next? Everything!",
    )
    t.bedtime()


def rainy_day(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    idea, doing, result = t.pick(words.INDOOR_GAMES)
    place, thing = t.pick(words.OUTDOOR_PLACES), t.pick(words.ROOM_THINGS)
    t.opening()
    t.paragraph()
    t.say(
        "One morning, the rain came down in buckets.",
        "One day, the sky was dark and rain drummed on the roof.",
        "On Saturday it rained and rained and did not stop.",
        "One gray afternoon, big drops splashed against the window.",
    )
    t.say(
        f"{h} had wanted to go to {place} with {t.friend_called}.",
        f"{h} and {t.friend_called} had planned a picnic near {place}.",
        f"{h} looked out and thought about {place}. {capital(t.friend_called)} stood there, too, with wet boots.",
    )
    t.say(
        f'"Now our day is ruined," {h} said with a sigh.',
        f'"Rain, rain, go away," {h} grumbled.',
        f'"There is nothing to do," {f} moaned.',
        f"They stared at the puddles and felt {t.pick(words.SAD)}.",
    )
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f'{h.His} {g.kind} looked up from {g.his} work. "When I was small, I loved rainy days," said {g}. "On days like this, we would {idea}."',
            f"\"A rainy day is a gift,\" said {h.his} {g.kind}. \"Why don't you {idea}?\"",
        )
    else:
        t.say(
            f'Then {f} looked at the {thing} and had an idea. "We could {idea}!"',
            f"{h} tapped {h.his} chin. \"I know what we can do,\" {h.he} said. \"Let's {idea}!\"",
        )
    t.say(
        f"{doing}.",
        f"At once they went to work. {doing}.",
        f'"Great idea!" they cried. {doing}.',
    )
    t.say(
        f"{h} was the captain, and {f} was the helper. Then they traded places.",
        f"{h} made the rules, and {f} made the noises.",
        f"{f} laughed so hard that {f.he} got the hiccups.",
        "They were so busy that they forgot all about the weather.",
    )
    t.maybe(
        f"{g} was the first visitor and paid with a shiny button.",
        f"{g} brought {t.pick(words.DRINKS)} and two {t.pick(words.TREATS)[1]}.",
        f"Even the {t.pick(words.ROOM_THINGS)} became a part of the {result}.",
    )
    t.paragraph()
    t.say(
        f'Suddenly {f} looked up. "Listen! The rain has stopped."',
        "Hours later, a ray of sun fell on the floor. The rain was over.",
        f"When the clouds broke, a rainbow stretched over {place}.",
    )
    t.say(
        f"\"Let's finish our {result} first,\" said {h}, and {f} agreed.",
        "They ran outside and jumped in every puddle. Splash, splash, splash!",
        f'{h} looked at the {result} and smiled. "I hope it rains tomorrow!"',
    )
    t.say(
        "It had turned into the best day of the week.",
        f"{h} learned that fun does not need sunshine, only a good idea.",
        f"From then on, {h} and {f} kept a list of things to do when it rains.",
        "Rainy days were never boring again.",
    )
    t.bedtime()


def helping_animal(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    creature, trouble, rescue, thanks = t.pick(words.CREATURES)
    place = t.pick(words.OUTDOOR_PLACES)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h} was walking near {place} with {t.friend_called}.",
        f"{t.pick(words.DAYS)}, {h} and {t.friend_called} went to {place}.",
        f"{t.pick(words.DAYS)}, {h} took a walk to {place}, and {t.friend_called} came along.",
    )
    t.outdoors()
    t.say(
        "All of a sudden, something moved.",
        f'"Wait!" said {f}. "What is that?"',
        f"Then {h} stopped. Something was wrong.",
    )
    t.say(
        f"There was {a(creature)}, {trouble}.",
        f"They found {a(creature)}, {trouble}.",
        f"Not far away they saw {a(creature)}, {trouble}.",
    )
    t.paragraph()
    t.say(
        f'"Poor thing!" said {h}. "We have to help."',
        f"\"Don't be afraid, little {creature},\" {h} whispered.",
        f'"It needs us," said {f}, and {h} nodded.',
    )
    if t.chance(0.5):
        t.say(
            f'{h} wanted to run to it, but {f} held {h.him} back. "Slowly," {f} said, "or it will be frightened."',
            f"The {creature} trembled when they came closer. So {h} sat down and hummed until it grew calm.",
        )
        t.say(
            f"Then, working together, they {rescue}.",
            f"{f} kept watch while {h} thought of a plan. Then they {rescue}.",
        )
    else:
        t.say(
            f"They tried and tried, but they could not do it alone. {h} ran to fetch {h.his} {g.kind}.",
            f"\"This is too difficult for us,\" said {f}. \"Let's get help.\" {h} raced home to find {h.his} {g.kind}.",
        )
        t.say(
            f"{g} came at once. Together they {rescue}.",
            f'"You did right to call me," said {g}. With great care, they {rescue}.',
        )
    t.say(
        f"{thanks}.",
        f"The {creature} was free! {thanks}.",
        f"{thanks}, as if it wanted to say thank you.",
    )
    t.paragraph()
    t.say(
        f'"Be careful next time," said {h} with a smile.',
        f'"Goodbye, little friend!" {f} called and waved.',
        f"{h} and {f} looked at each other, {t.pick(words.GLAD)} and a bit muddy.",
    )
    t.say(
        f"The next day, when they came back, the {creature} was there again. It remembered them.",
        f"After that, {h} often visited {place}, and sometimes the {creature} came to say hello.",
        f"\"What shall we call it?\" asked {f}. They named the {creature} {t.pick(('Lucky', 'Hero', 'Star', 'Cricket', 'Dusty', 'Captain', 'Muffin'))}.",
        f"All the way home, they talked about the {creature}.",
    )
    t.say(
        f"{h} learned that even small helpers can do great things.",
        "Being gentle is a way of being strong.",
        f'"You have a good heart," {h.his} {g.kind} told {h.him} that evening.',
        "It feels good to help someone who cannot ask for it.",
    )


def broken_thing(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    thing, accident, mended = t.pick(words.BROKEN_THINGS)
    color, helper = t.pick(words.COLORS), t.stranger(words.HELPERS)
    t.opening()
    t.say(
        f"{h.His} {g.kind} had given {h.him} {a(color)} {thing}, and {h} was very proud of it.",
        f"{h} had {a(color)} {thing} that once belonged to {h.his} {g.kind}.",
        f"The nicest thing that {h} owned was {a(color)} {thing}.",
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h} was showing the {thing} to {t.friend_called} when {accident}.",
        f"{t.pick(words.DAYS)}, {h} and {t.friend_called} were playing with the {thing}. One moment it was fine, and the next moment, {accident}.",
        f"{t.pick(words.DAYS)}, {h} was playing with {t.friend_called} and forgot to be careful with the {thing}. All at once, {accident}.",
    )
    t.say(
        f'"Oh no!" cried {h}. "It is broken!"',
        f"{h} looked at the {thing} and could not say a word.",
        f'"My poor {thing}!" {h} sobbed.',
    )
    if t.chance(0.5):
        t.say(
            f'"We can throw it away," said {f}, "and get a new one." But {h} did not want a new one.',
            f'{f} put an arm around {h}. "Maybe it can be fixed," {f} said.',
        )
        t.say(
            f"So they carried it to {h}'s {g.kind}. {g} turned it around and around. \"Hmm,\" said {g}. \"Fetch me the toolbox.\"",
            f"They showed it to {h}'s {g.kind}. \"Broken does not mean lost,\" {g} said and rolled up {g.his} sleeves.",
        )
        t.paragraph()
        t.say(
            f"All three worked together. {h} held the pieces, {f} handed over the tools, and {g} {mended}.",
            f"{g} showed {h} each step. Bit by bit, they {mended}.",
        )
    else:
        t.say(
            f"In the next street lived {helper.kind} who could repair almost anything. {h} and {f} went there together.",
            f'"I know {helper.kind} who is good at mending," said {f}. Off they went.',
        )
        t.say(
            f'"I can help," {helper} told them, "but you must do the hard part yourself, {h}."',
            f'{capital(helper.name)} put on {helper.his} glasses. "I have seen worse," {helper.he} said kindly.',
        )
        t.paragraph()
        t.say(
            f"{h} listened to every word. With steady {t.hand}s, {h.he} {mended}.",
            f"It took patience, and {h} had to start over twice. At last {h.he} {mended}.",
        )
    t.say(
        f"When it was done, the {thing} looked almost new.",
        f"You could still see the mend, but {h} thought that it looked even better.",
        "They looked at it from all sides. Everything was as it should be!",
    )
    t.paragraph()
    t.say(
        f'"Thank you, thank you!" said {h}, beaming.',
        f'"I like it even more now," {h} said, "because we fixed it together."',
        f"{h} was {t.pick(words.GLAD)} and hugged {f}.",
    )
    t.say(
        f"From that day on, {h} took good care of the {thing}.",
        f"{h} learned that many broken things can be mended with time and care.",
        f"Soon {t.everyone} brought their broken things to {h}, and {h.he} mended them one by one.",
        f"{h} never forgot that afternoon.",
    )
    t.bedtime()


def treasure_hunt(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    spot = t.pick(words.TREASURE_SPOTS)
    first, second = t.pick_two(words.LANDMARKS)
    trinket, other = t.pick_two(words.TRINKETS)
    color = t.pick(words.COLORS)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h} found a piece of paper {t.pick(words.HIDING_PLACES)}. It was a map!",
        f"{t.pick(words.DAYS)}, a bottle washed up at {h}'s feet, with a rolled-up map inside.",
        f"{t.pick(words.DAYS)}, an old map slipped out of a dusty book and landed at {h}'s feet.",
    )
    t.say(
        "A dotted line led to a big red cross.",
        'There was an arrow on it, and in the corner somebody had written "Be brave."',
        'In curly letters it said, "For the one who looks carefully."',
    )
    t.say(
        f'{h} ran to {t.friend_called}. "Look! Do you want to go on an adventure?"',
        f"\"A treasure map!\" said {t.friend_called}. \"Let's go!\"",
        f"{h} showed it to {t.friend_called}, and {f} grabbed a shovel at once.",
    )
    t.paragraph()
    t.say(
        f"First they came to {first}. Then they passed {second}.",
        f"They followed the line past {first} and on to {second}.",
        f'"Here is {first}, just like on the map," said {f}. A little later they reached {second}.',
    )
    if t.chance(0.5):
        animal = t.stranger(words.WISE_ANIMALS)
        t.say(
            f'But there the path split in two. "Which way now?" asked {h}.',
            "But after that, the map was torn, and they did not know where to go.",
        )
        t.say(
            f'They met {animal.kind}, who was resting in the shade. "Go straight on to the fork, and then to the right," {animal.he} said.',
            f'{capital(animal.kind)} watched them. "Turn left and count to thirty," {animal.he} said with a wink.',
        )
        t.say(
            f'"Thank you very much!" said {h}. Soon they stood at the right place, {spot}.',
            f"They thanked {animal} and hurried on. And there was the cross, {spot}.",
        )
    else:
        t.say(
            f'{f} was tired. "Maybe there is no treasure," {f} muttered.',
            f"It was a long way, and {f} wanted to turn back.",
        )
        t.say(
            f'"Only ten more steps," {h} begged. They counted aloud. At ten, they saw the cross, {spot}.',
            f'"Look over there!" said {h}. The red cross was waiting for them, {spot}.',
        )
    t.paragraph()
    t.say(
        "A small wooden chest was hidden there. The lid opened with a squeak.",
        "They dug and scraped until they hit something hard. It was a tin box!",
        f"There they found a box tied with {color} string.",
    )
    t.say(
        f"Inside lay {a(trinket)}, {a(other)} and a little note.",
        f"It held {a(trinket)}, {a(color)} {other} and a folded note.",
    )
    t.say(
        'The note said, "The best treasure is a friend who comes along."',
        f"\"Well done, explorers!\" said the note. \"Love, {g}.\" They burst out laughing. {h}'s {g.kind} had planned it all!",
        f"It said, \"Take one thing, and leave one thing for the next explorer.\" So {h} left a shiny {t.pick(('penny', 'nut', 'pinecone', 'ticket', 'bead', 'sticker'))} in the box.",
    )
    t.say(
        f"{h} took the {trinket}, and {f} took the {other}.",
        f'"You choose first," said {h}, and {f} chose the {trinket}.',
        f"They decided to keep the {trinket} together, one week at {h}'s home and one week at {f}'s.",
    )
    t.say(
        "It was the greatest adventure of the year.",
        "On the way home, they were already drawing a map of their own.",
        f'"The walk was the best part," said {f}, and {h} agreed.',
        f"{h} learned that you find things when you do not stop too soon.",
    )


def promise_kept(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    task, temptation, done = t.pick(words.PROMISES)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h.his} {g.kind} asked {h.him} to {task}.",
        f"{t.pick(words.DAYS)}, {h} had an important job. {h.His} {g.kind} needed someone to {task}.",
    )
    t.say(
        f'"I promise," said {h}, and {h.he} meant it.',
        f'"You can count on me," {h} said proudly.',
        f"\"I won't forget it,\" said {h}. \"I promise with all my heart.\"",
    )
    t.maybe(
        f'{g} smiled. "A promise is like a bridge," {g.he} said. "Others trust it to hold."',
        f'"That is a big help," said {g}.',
        f"{h} repeated it three times so that it would stay in {h.his} head.",
    )
    t.paragraph()
    t.say(
        f'But soon {t.friend_called} came running. "Come on, {h}! We are going to {temptation}!"',
        f'On the way, {h} met {t.friend_called}. "Do you want to {temptation}?" asked {f}.',
        f'Then {t.friend_called} called from the gate, "{h}, today is the day to {temptation}!"',
    )
    t.say(
        f"That sounded like so much fun! {h} wanted to say yes.",
        f"{h.His} feet were already moving.",
        f"{h} bit {h.his} lip. Nothing in the world sounded better.",
    )
    if t.chance(0.5):
        t.say(
            f'"It will only take a minute," said {f}. "Nobody will notice."',
            f'"You can do your job later," {f} said.',
        )
        t.say(
            f'But {h} shook {h.his} head. "I made a promise. First I have to {task}."',
            f'{h} stood still and thought of {h.his} {g.kind}. "No," {h.he} said. "Somebody is counting on me."',
        )
        t.say(
            f"So {h} {done}.",
            f"And while the others laughed in the distance, {h} {done}.",
        )
        t.say(
            f'{f} was quiet for a moment. "Next time I will help you," {f} said.',
            f'When {f} saw that, {f.he} said, "You are right. I will wait for you."',
        )
    else:
        t.say(
            f'"All right, just for a little while," said {h}, and off they went.',
            f"{h} followed {f}, and for some time {h.he} forgot everything else.",
        )
        t.say(
            f'But in the middle of the fun, {h} felt a pinch in {h.his} tummy. "My promise!" {h.he} gasped.',
            f'Then the bell rang four times, and {h} jumped. "I have to go! I promised to {task}!"',
        )
        t.say(
            f"{h} ran until {h.his} cheeks were hot. Just in time, {h.he} {done}.",
            f"Without looking back, {h} raced away. {h.He} {done}, and it was not too late.",
        )
    t.paragraph()
    t.say(
        f'When {h.his} {g.kind} came home, everything was in order. "Thank you, {h}," said {g}. "I can trust you."',
        f'{g} found out, of course. "You kept your word," {g} said, and {h.his} {g.kind} had never looked so proud.',
        f'In the evening, {g} gave {h} {a(t.pick(words.GIFTS))}. "This is for someone who keeps promises."',
    )
    t.say(
        f"{h} felt warm and {t.pick(words.GLAD)} inside.",
        f"And afterward, there was still time to play {t.pick(words.GAMES)} with {f}.",
        f"The next day, {h} and {f} could finally {temptation}, and it was even more fun.",
    )
    t.say(
        f"{h} learned that a promise is small to say and big to keep.",
        f"Since then, everyone knows that {h} does what {h.he} says.",
        "It was a good day for keeping a promise.",
    )


def mistake_and_apology(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    act, result, thing, amends = t.pick(words.MISHAPS)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h.his} {g.kind} was out, and {h} was playing alone.",
        f"{t.pick(words.DAYS)}, {h} was bored and looked for something to do.",
        f"{t.pick(words.DAYS)}, {h} was in a wild mood.",
    )
    t.say(
        f"{h.He} {act}. It was fun for a minute, but then {result}.",
        f"{h} knew the rules very well. Still, {h.he} {act}, and {result}.",
        f"{h} {act}. The next thing {h.he} knew, {result}!",
    )
    t.say(
        f'{h} stood very still. "What have I done?" {h.he} whispered.',
        f"{h.His} face turned red, and {h.his} knees felt weak.",
        f'"Oh dear, oh dear," {h} mumbled. {h.He} felt {t.pick(words.SCARED)}.',
    )
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f'Soon {h.his} {g.kind} came in. "What happened here?" asked {g}.',
            f'Then the door opened, and there stood {h.his} {g.kind}. "Who did this?" {g} asked.',
        )
        t.say(
            f'"Maybe it was the wind," said {h} in a thin voice.',
            f"\"It wasn't me,\" {h} said quickly. \"I think it was {a(t.pick(words.BIRDS))}.\"",
        )
        t.say(
            f"{g} looked at {h.him} quietly. The lie felt heavy, like a stone in {h.his} tummy.",
            f'{g} only said, "I see," and {h} could not eat a single bite at supper.',
        )
        t.say(
            f'At last {h} could not bear it. "It was me," {h.he} said. "I am so sorry."',
            f'"{g}," {h} said, and began to cry, "I told a lie. I did it, and I am sorry."',
        )
    else:
        t.say(
            f'"You could run away and hide," said a small voice inside {h.him}. But another voice said, "Tell the truth."',
            f'{capital(t.friend_called)} had seen it through the window. "You should tell the truth," said {f}. "It is the bravest thing."',
        )
        t.say(
            f'So {h} went to {h.his} {g.kind}. "I made a mistake," {h.he} said, looking at the floor.',
            f'{h} took a deep breath and walked to {h.his} {g.kind}. "I have to tell you something bad," {h.he} began.',
        )
        t.say(
            f'Then {h} told everything, from beginning to end. "I am very sorry about the {thing}."',
            f'"It is about the {thing}," said {h}. "It was my fault. Please forgive me."',
        )
    t.paragraph()
    t.say(
        f'{g} was silent for a moment. Then {g.he} said, "I am not happy about the {thing}, but I am glad that you told the truth."',
        f'"Everybody makes mistakes," said {g}. "What matters is what you do next."',
        f'{g} sighed and opened {g.his} arms. "Thank you for being honest," {g} said.',
    )
    t.say(
        f"Together they made it right. {h} {amends}.",
        f'"How can I make it better?" asked {h}. And then {h.he} {amends}.',
        f"{h} did not wait to be asked. {h.He} {amends}.",
    )
    t.say(
        f"After that, the heavy feeling in {h.his} chest was gone.",
        f"{h} felt as light as a feather.",
        f"When the work was done, {g} made {t.pick(words.DRINKS)} for both of them.",
    )
    t.say(
        f"{h} learned that saying sorry is hard, but hiding the truth is harder.",
        f'"Next time I will think first," {h} promised, and {h.he} did.',
        f"From then on, when something went wrong, {h} told {g} right away.",
        "A mistake can be mended, if you have the courage to say it.",
    )


def race(t: Teller) -> None:
    h, f = t.hero, t.friend
    place, start = t.pick_two(words.OUTDOOR_PLACES)
    animal = t.stranger(words.WISE_ANIMALS)
    prize, (_, treats) = t.pick(words.GIFTS), t.pick(words.TREATS)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, there was a big race from {start} to {place}.",
        f"{t.pick(words.DAYS)}, {t.everyone} met at {start} for a race. The finish line was at {place}.",
    )
    t.say(
        f"The prize was {a(prize)}.",
        f"The winner would get {a(prize)} and a bag of {treats}.",
        f'"The fastest one wins {a(prize)}!" someone announced.',
    )
    t.say(
        f'{capital(t.friend_called)} was very quick and boasted, "Nobody can beat me!"',
        f'"I always win," said {t.friend_called} and stretched {f.his} legs.',
        f"{h} was not the fastest runner, and {t.friend_called} laughed about it.",
    )
    t.maybe(
        f"{h} swallowed hard but said nothing.",
        f'"I will just do my best," {h} said.',
        f"{h} had practiced all week.",
    )
    t.paragraph()
    t.say(
        '"Ready, set, go!" they heard, and everybody dashed off.',
        "A whistle blew, and off they went in a cloud of dust.",
        "The flag dropped, and the race began.",
    )
    t.outdoors()
    if t.chance(0.34):
        t.say(
            f'{f} was soon far ahead. "I have plenty of time," {f} thought, and stopped for a nap in the shade.',
            f"{f} was so sure of winning that {f.he} stopped to eat {treats} along the way.",
        )
        t.say(
            f"{h} kept going, one step after another, and never stopped.",
            f"{h} did not look left or right. {h.He} ran on and on at a steady pace.",
        )
        t.say(
            f"When {f} noticed it, it was too late. {h} crossed the line first!",
            f"The crowd cheered. {f} came rushing up, but {h} had already won!",
        )
        t.paragraph()
        t.say(
            f'"How did you do that?" panted {f}. "I did not stop," said {h}.',
            f'"I should not have boasted," said {f}. "Well done, {h}."',
        )
        t.say(
            f"{h} shared the prize with {f}, and they were better friends than ever.",
            f"{h} learned that steady steps can carry you a long way.",
        )
    elif t.chance(0.5):
        t.say(
            f'Halfway there, {f} tripped over a root and tumbled to the ground. "My ankle!" {f} cried.',
            f"Near the last turn, {f} slipped on a wet stone and could not get up.",
        )
        t.say(
            f"Now {h} could win! But {h.he} stopped and turned around.",
            f"{h} saw the finish line. Then {h.he} looked back at {f}.",
        )
        t.say(
            f'"Hold on to me," said {h}. Step by step, the two of them limped on together.',
            f'"A race is only a race," said {h}. "Put your arm around my shoulder."',
        )
        t.paragraph()
        t.say(
            "They were the last to arrive, but nobody got louder cheers.",
            "Everyone clapped as they crossed the line, side by side.",
        )
        t.say(
            f'"I am sorry that I bragged," said {f}. "You are the real winner." And {f} gave {h} half of {f.his} {treats}.',
            f'{capital(animal.kind)} stepped forward. "The prize is for the kindest heart today," {animal.he} said, and gave the {prize} to {h}.',
        )
    else:
        t.say(
            f"{h} and {f} ran neck and neck. Neither of them could get ahead.",
            f"{h} was right behind {f}, and then right beside {f.him}.",
        )
        t.say(
            f'Close to the end, they saw {animal.kind} whose cart had lost its load. "Could you help me?" {animal.he} asked.',
            f'Then they met {animal.kind}. "My basket fell into the ditch," {animal.he} said, "and I am too old to climb."',
        )
        t.say(
            "The two runners looked at each other and stopped. They gathered up everything in no time.",
            f"{h} stopped at once. {f} ran on a few steps, and then came back, too.",
        )
        t.paragraph()
        t.say(
            f"After that, they finished together, {t.hand} in {t.hand}.",
            "They crossed the finish line at the very same moment.",
        )
        t.say(
            f'"So we share the prize," said {f}. "And the fun," said {h}.',
            f"The prize went to somebody else, but {animal} brought them {treats} the next day.",
        )
    t.say(
        f"{h} was {t.pick(words.GLAD)} all evening.",
        "And the next time, they raced just for fun.",
        "It is nice to win, but it is nicer to be a good friend.",
        "Everyone talked about that race for a long time.",
    )


def planting_seed(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    seed, plant, grown = t.pick(words.PLANTS)
    t.opening()
    t.paragraph()
    t.say(
        f'{t.pick(words.DAYS)}, {h.his} {g.kind} gave {h.him} a tiny seed. "It is a {seed} seed," said {g}.',
        f"{t.pick(words.DAYS)}, {h} found a {seed} seed in {h.his} pocket and showed it to {h.his} {g.kind}.",
        f"{t.pick(words.DAYS)}, {h} traded {a(t.pick(words.TRINKETS))} for a single {seed} seed. {h.His} {g.kind} was amused.",
    )
    t.say(
        f'"What can such a small thing do?" asked {h}. "Wait and see," said {g}.',
        f'"Is there really a whole plant inside?" {h} asked. "Yes," said {g}, "but it is asleep."',
    )
    t.say(
        f"{h} dug a hole, dropped the seed in and covered it with dark soil.",
        f"{h} made a hole with one {'claw' if t.animals else 'finger'}, put the seed inside and patted the earth flat.",
        f"They chose a sunny corner, and {h} planted the seed and gave it a drink of water.",
    )
    t.paragraph()
    t.say(
        f"The next morning, {h} ran to look. There was nothing but dirt.",
        f"{h} sat down in front of it and waited. Nothing happened.",
        "One day passed, then two, then five. The ground stayed bare.",
    )
    if t.chance(0.5):
        t.say(
            f'"Grow!" {h} ordered. "Please grow!" But the seed did not listen.',
            f'"Maybe I should dig it up and check," said {h}.',
        )
        t.say(
            f'"You cannot hurry a seed," said {g}. "Water it, and let it sleep."',
            f'{g} laughed softly. "Good things take time," {g.he} said. "Sing to it, if you like."',
        )
        t.say(
            f"So every day {h} brought water and sang a little song.",
            f"{h} tried hard to be patient. {h.He} watered the spot each morning and pulled the weeds.",
        )
    else:
        t.say(
            f'{capital(t.friend_called)} laughed. "You are watering mud!" said {f}.',
            f'"Forget it," said {t.friend_called}. "Come and play {t.pick(words.GAMES)} with me."',
        )
        t.say(
            f"But {h} believed in the seed and brought fresh water every day.",
            f'"I will come later," said {h}. "First my seed needs a drink."',
        )
        t.say(
            f"When a hungry {t.pick(words.BIRDS)} came, {h} built a tiny fence of sticks.",
            f"When it got too hot, {h} made a little roof of leaves.",
        )
    t.say(
        f"And one morning, there was {t.pick(words.FIRST_GROWTHS)}!",
        f"Then, after a night of soft rain, {h} saw {t.pick(words.FIRST_GROWTHS)}.",
    )
    t.paragraph()
    t.say(
        f'"It is awake! It is awake!" {h} shouted.',
        f'"Come quickly, everybody!" {h} called.',
        f"{h} was so {t.pick(words.GLAD)} that {h.he} danced around it.",
    )
    t.say(
        f"Week after week it grew. By the end of summer, the {plant} {grown}.",
        f"It drank the rain and stretched toward the sun. At last, the {plant} {grown}.",
    )
    t.say(
        f"{h} saved the new seeds in an envelope and gave half of them to {t.friend_called}.",
        f'{h} invited {t.friend_called} to see it. "Can you teach me how to do that?" {f} asked.',
        f'"You gave it water, and time, and love," said {g}. "That is the whole secret."',
    )
    t.say(
        f"{h} learned that waiting is a part of growing.",
        f"The next spring, {h} planted a whole row.",
        "Sometimes the smallest things need the most patience.",
    )


def new_sibling(t: Teller) -> None:
    h, f = t.hero, t.friend
    sister = t.chance(0.5)
    baby, she, her = ("sister", "she", "her") if sister else ("brother", "he", "him")
    mother, father = t.pick((("Mom", "Dad"), ("Mama", "Papa"), ("Mommy", "Daddy")))
    toy, game = t.pick(words.TOYS), t.pick(words.GAMES)
    t.opening()
    t.say(
        f"{h} was an only child, and that was fine.",
        f"Every evening, {mother} and {father} read {h} a story.",
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {mother} and {father} came home with a little bundle. It was a new baby {baby}!",
        f'{t.pick(words.DAYS)}, {father} said, "Come and meet your new baby {baby}."',
        f"{t.pick(words.DAYS)}, everything changed. {h} got a baby {baby}.",
    )
    t.say(
        "The baby was tiny and pink and slept all the time.",
        f"The baby cried a lot, and {she} could not even play {game}.",
        f"The baby had very small {t.hand}s and a very loud voice.",
    )
    t.say(
        f"Now nobody had time for {h}. {mother} was tired, and {father} was always busy.",
        f"Everybody looked at the baby, and nobody looked at {h}.",
        f'"Shh, the baby is sleeping," {father} said each time {h} wanted to play.',
    )
    t.say(
        f"{h} felt {t.pick(words.SAD)} and hid {t.pick(words.HIDEOUTS)}.",
        f'"Can we give the baby back?" {h} asked.',
        f'"They do not need me anymore," {h} told {t.friend_called}.',
    )
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f'{mother} found {h.him} and took {h.him} on her lap. "My heart did not split in two," she said. "It grew twice as big."',
            f'{mother} sat down next to {h}. "When you were born, you were just as small," she said. "Now you are big enough to help me."',
        )
        t.say(
            f'She showed {h} how to hold the baby. "Put your arm under the head, like this."',
            f'"Would you like to hold {her}?" she asked. {h} nodded carefully.',
        )
    else:
        t.say(
            f"One night the baby would not stop crying. {mother} sang, and {father} walked up and down, but nothing helped.",
            f"One afternoon, the baby cried and cried. {father} tried everything, and even {mother} did not know what to do.",
        )
        t.say(
            f'{h} came with {h.his} {toy} and made a funny face. "Peekaboo!" {h.he} said.',
            f"{h} leaned over the cradle and hummed {h.his} favorite song.",
            f'{h} put {h.his} own {toy} beside the baby. "You may borrow it," {h.he} whispered.',
        )
    t.say(
        f"The baby stopped, looked at {h} and smiled. It was the very first smile!",
        f"The baby grabbed {h.his} {t.hand} and held on tight.",
        "The baby gave a happy gurgle and kicked both feet.",
    )
    t.say(
        f'"Look! The baby likes me!" said {h}.',
        f"{h} felt something warm in {h.his} chest.",
        f'"You are the one {she} loves best," said {mother}.',
    )
    t.paragraph()
    t.say(
        f"From that day on, {h} helped every morning and was {t.pick(words.GLAD)} to be the big one.",
        f"{h} began to tell the baby all about {t.pick(words.HOBBIES)}.",
        f'"I will teach you everything I know," {h} promised the baby.',
    )
    t.say(
        f"And in the evening, {father} read a story to both of them.",
        f'When {h.his} friend {f} came to visit, {h} said proudly, "This is my little {baby}."',
        "Now the family was a little louder and a lot happier.",
    )
    t.say(
        "There was enough love for everyone.",
        f"{h} learned that love gets bigger when you share it.",
        "Being big was the best thing in the world.",
    )


def getting_lost(t: Teller) -> None:
    h, g = t.hero, t.grownup
    first, second = t.pick_two(words.LANDMARKS)
    the_first = definite(first)
    place, bug, color = t.pick(words.OUTDOOR_PLACES), t.pick(words.BUGS), t.pick(words.COLORS)
    t.opening()
    t.paragraph()
    t.say(
        f'{t.pick(words.DAYS)}, {h} went to {place} with {h.his} {g.kind}. "Stay close to me," said {g}.',
        f"{t.pick(words.DAYS)}, {h} and {h.his} {g.kind} were on their way to {place}.",
    )
    t.outdoors()
    t.say(
        f"{h} saw {a(color)} {bug} and followed it. It led {h.him} past {first} and around a corner.",
        f"{h} heard music in the distance and walked toward it, past {first}.",
        f"{h} ran ahead to see {first}, and then a little farther, and then a little more.",
    )
    t.say(
        f"When {h.he} turned around, {g} was gone.",
        f"Then {h} looked back. Nothing looked the way it should.",
        f"Suddenly {h} noticed that {h.he} was all alone.",
    )
    t.say(
        f'"{g}? {g}!" {h} called, but there was no answer.',
        f'{h.His} lip began to tremble. "I am lost," {h.he} said.',
        f"{h} felt {t.pick(words.SCARED)} and very small.",
    )
    t.paragraph()
    if t.chance(0.4):
        t.say(
            f'Then {h} remembered what {g} always said. "If you are lost, stop, stay where you are, and make some noise."',
            f'{h} wanted to run, but {h.he} remembered the rule. "When you are lost, stay in one place."',
        )
        t.say(
            f"So {h} sat down next to {the_first} and sang as loudly as {h.he} could.",
            f"{h} stayed right beside {the_first} and clapped and called and clapped again.",
        )
        t.say(
            f"After a while, there were footsteps, and {g} came running with open arms.",
            f'It felt like a hundred years, but it was only a few minutes. "There you are!" cried {g}.',
        )
    elif not t.animals:
        helper = t.stranger(words.HELPERS)
        t.say(
            f'{capital(helper.kind)} saw {h.him} and knelt down. "Are you lost?" {helper.he} asked in a kind voice.',
            f'Just then {helper.kind} came by. "Hello there," {helper.he} said. "Where do you belong?"',
        )
        t.say(
            f"\"I can't find my {g.kind},\" said {h}. Then {h} told {helper} {h.his} name and the name of {h.his} street.",
            f"{h} explained that {h.his} {g.kind} wore {a(color)} hat.",
        )
        t.say(
            f"They waited together near {second}. Soon {g} came hurrying around the corner.",
            f'"I think I saw someone looking for you by {place}," said {helper}. And there was {g}, calling and waving!',
        )
    else:
        animal = t.stranger(words.WISE_ANIMALS)
        t.say(
            f'{capital(animal.kind)} looked down at {h.him}. "You seem lost," {animal.he} said.',
            f'"Why are you crying?" asked a voice. It was {animal.kind}.',
        )
        t.say(
            f"\"I can't find my {g.kind},\" {h} said. \"What did you pass on your way?\" asked {animal}. \"I passed {first},\" said {h}.",
            f'{h} told the whole story. "Then we will go back the way you came," said {animal}.',
        )
        t.say(
            f"Together they walked back past {the_first}, and there stood {g}!",
            f"Step by step, they followed {h.his} tracks. At the end of the trail, {g} was searching behind every bush.",
        )
    t.say(
        f'{g} hugged {h.him} tightly. "I was so worried," {g.he} said.',
        f'"I am sorry that I ran off," said {h}, and {g} held {h.him} for a long time.',
        f"{h} jumped into {g.his} arms and would not let go.",
    )
    t.paragraph()
    t.say(
        f"On the way home, {h} held on to {g}'s {t.hand} all the time.",
        f"Then they went home and drank {t.pick(words.DRINKS)}.",
        f'"Next time we look at things together," said {g}, and {h} agreed.',
    )
    t.say(
        f"{h} learned to stay close and to ask for help.",
        f"After that, {h} always looked back before {h.he} went ahead.",
        "Being found is one of the best feelings of all.",
        f"And {h} never forgot the rule again.",
    )
    t.bedtime()


def big_storm(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    tree, toy = t.pick(words.TREES), t.pick(words.TOYS)
    t.opening()
    t.paragraph()
    t.say(
        "One evening, dark clouds rolled over the hills, and the air grew cold.",
        "One night, the wind began to howl around the corners.",
        "One hot afternoon, the sky turned purple and then almost black.",
    )
    t.say(
        f"\"A storm is coming,\" said {h.his} {g.kind}. \"Let's bring everything inside.\"",
        f'{h.His} {g.kind} closed the shutters. "This will be a big one," said {g}.',
    )
    t.say(
        "A flash lit up everything, and then came a boom that shook the walls.",
        'Lightning zigzagged across the sky. "Crash!" went the thunder.',
        "The rain came sideways, and the thunder growled like a bear.",
    )
    t.say(
        f'{h} covered {h.his} ears. "Make it stop!" {h.he} begged.',
        f"{h} was {t.pick(words.SCARED)} and held on to {h.his} {toy}.",
        f"{h} dived under the blanket and shook like a leaf.",
    )
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f"\"Let's count,\" said {g}. \"After the flash, we count until the boom. If the number grows, the storm is leaving.\"",
            f'{g} sat down beside {h}. "Thunder is only noise," {g.he} said. "We can count how far away it is."',
        )
        t.say(
            "They counted to three. Then they counted to five, to eight, and to twelve.",
            f'"One, two, three, four," counted {h}. The next time {h.he} got to nine.',
        )
        t.say(
            f'"It is going away!" said {h}, and {h.his} voice did not shake anymore.',
            f"With every number, {h} felt a little braver.",
        )
    else:
        t.say(
            f'Then there was a knock. It was {t.friend_called}, soaked to the skin. "A branch fell on our roof," {f} said. "May I stay here?"',
            f'Somebody knocked at the door. {capital(t.friend_called)} stood outside, dripping and shivering. "The water came into our home," said {f}.',
        )
        t.say(
            f'"Come in!" said {h}. {h.He} brought a towel, a dry blanket and {t.pick(words.DRINKS)}.',
            f"{h} forgot {h.his} own fear. {h.He} rubbed {f} dry and gave {f.him} the warmest seat.",
        )
        t.say(
            "They made a nest of pillows and told each other jokes until the thunder sounded far away.",
            f'"Two are braver than one," said {f}. They sang so loudly that they hardly heard the storm.',
        )
    t.paragraph()
    t.say(
        "In the morning, the world was washed and bright.",
        f"At last it was quiet. Only a few drops fell from the {tree} trees.",
        "When they woke up, the sun was shining on broken twigs and big puddles.",
    )
    t.say(
        f"The old {tree} tree had lost a branch, and leaves lay all over the ground.",
        "The wind had knocked down the fence and turned the wheelbarrow over.",
        f"Somebody's hat was hanging in the {tree} tree.",
    )
    t.say(
        f"{h} put on boots and helped to clean up with the neighbors.",
        "Everyone worked together, and by noon the mess was gone.",
        f"{h} found a tiny nest on the ground and set it safely back among the branches.",
    )
    t.say(
        f'"You were brave last night," said {g}. "I was scared, too," {h} said, "but not all the time."',
        f"{h} learned that being brave means being scared and still helping.",
        f"Now, when thunder rumbles, {h} just starts to count.",
        f'"Every storm runs out of rain," said {g}, and {h} remembered it.',
    )
    t.bedtime()


def surprise_party(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    first, second = t.pick_two(words.DECORATIONS)
    gift, meal, (_, treats) = t.pick(words.GIFTS), t.pick(words.MEALS), t.pick(words.TREATS)
    guest = t.pick((h, f))
    t.opening()
    t.paragraph()
    if guest is h:
        t.say(
            f"It was {h.his} birthday, but nobody said a word about it.",
            f"{h} woke up early, because it was {h.his} birthday. But at breakfast, nobody sang.",
        )
        t.say(
            f'{h.His} {g.kind} only said, "Eat your breakfast, please."',
            f"\"Is today a special day?\" {h} asked. \"I don't think so,\" said {h.his} {g.kind}.",
        )
        t.say(
            f'{h} went to see {t.friend_called}, but {f} said, "I am busy today," and shut the door.',
            f"Even {t.friend_called} ran past without saying hello.",
        )
        t.say(
            f'"They all forgot me," {h} thought and felt {t.pick(words.SAD)}.',
            f"{h} walked around alone, kicked a pebble and sighed.",
        )
        t.paragraph()
        t.say(
            f"When it got dark, {h} went home. All the lights were off. {h} pushed the door open.",
            f"At four o'clock, {g} called, \"{h}, could you bring me my glasses?\" {h} opened the door to the next room.",
        )
        t.say(
            '"Surprise!" shouted everybody at once.',
            f'"Happy birthday!" cried a whole crowd, and {f} cried it the loudest.',
        )
        t.say(
            f"There were {first} and {second}, and a table full of {treats}.",
            f"Everything was full of {first}, and on the table there was {meal} and a huge cake.",
        )
        t.say(
            f'{f} held out a box. In it was {a(gift)}. "I was busy wrapping this," said {f}.',
            f'"I am sorry that I was so strange today," said {f}. "It was a secret!" {f.He} gave {h} {a(gift)}.',
        )
        t.say(
            f'{h} laughed and cried at the same time. "You did not forget me!"',
            f'"I thought that nobody remembered," {h} said. "How could we forget you?" asked {g}.',
        )
    else:
        t.say(
            f"{h} knew that tomorrow was the birthday of {t.friend_called}. \"Let's plan a surprise,\" {h.he} told {h.his} {g.kind}.",
            f'{capital(t.friend_called)} had never had a birthday party. "I will change that," {h} told {h.his} {g.kind}.',
        )
        t.say(
            f"They collected {treats} for everyone and put up {first} and {second}.",
            f"{h} painted the cards, and {g} made {meal}. Then they put up {first}.",
        )
        t.say(
            f"{h} wrapped {a(gift)} in shiny paper and tied it with a bow.",
            f"For a present, {h} chose {a(gift)}.",
        )
        t.paragraph()
        t.say(
            f'But keeping the secret was hard! When {f} asked, "What are you doing?" {h} said, "Oh, nothing," and blushed.',
            f"Twice {f} nearly found out. Once {h} had to sit on the box of {first}!",
        )
        t.say(
            f"At last the time came. {capital(t.everyone)} hid and tried not to giggle.",
            f'Everyone crouched in the dark and waited. Somebody sneezed. "Shh!" said {h}.',
        )
        t.say(
            f'{f} opened the door. "Surprise!" they all shouted.',
            f'The door creaked, the lamps went on, and everybody yelled, "Happy birthday, {f}!"',
        )
        t.say(
            f"{f} stood there with an open mouth and blinked.",
            f"{f} did not know what to say, and then {f.he} began to laugh.",
        )
        t.say(
            f'"It is all for you," said {h}. "You are my best friend."',
            f'{h} gave {f} the present. "I thought of you when I saw it," {h.he} said.',
        )
    t.paragraph()
    t.say(
        f"They played {t.pick(words.GAMES)} and ate until they were full.",
        f"There was music, and everyone danced, even {g}.",
        "They blew out the candles, made a wish and cut the cake.",
    )
    t.say(
        "It was a birthday that nobody would ever forget.",
        f'"That was the nicest surprise of my life," said {guest}.',
        "The best presents are the ones that come from the heart.",
        "They all agreed that surprises are hard to keep and lovely to give.",
    )


def stage_fright(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    act = t.pick(words.SHOW_ACTS)
    place = t.pick(words.OUTDOOR_PLACES)
    t.opening()
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, there was going to be a big show near {place}. {h} was going to {act}.",
        f"The spring festival was coming, and {h} had been asked to {act} in front of everyone.",
        f"For weeks, {h} had been getting ready to {act} at the summer fair.",
    )
    t.say(
        f"At home {h} could do it perfectly, with the {t.pick(words.ROOM_THINGS)} as the only audience.",
        f"{h} practiced in the bathtub, on the stairs and in bed.",
        f"{h.His} {g.kind} watched it every evening and always clapped.",
    )
    t.say(
        f"But when the day came, {h.his} knees were like jelly.",
        f"But on the great day, {h} peeked through the curtain and saw rows and rows of faces.",
        f"But backstage, {h.his} mouth was dry, and {h.his} {t.hand}s were wet.",
    )
    t.paragraph()
    t.say(
        f"\"I can't go out there,\" {h} whispered. \"Everyone will laugh.\"",
        f'"I forgot everything," {h} moaned. "My head is empty."',
        f'"I want to go home," said {h}.',
    )
    if t.chance(0.5):
        t.say(
            f'{capital(t.friend_called)} took {h.his} {t.hand}. "Just look at me," said {f}. "Pretend that I am the only one."',
            f'"I get butterflies in my tummy, too," said {t.friend_called}. "They only want to dance with you."',
        )
        t.say(
            f"{f} sat down in the very first row and made a silly face. {h} had to grin.",
            f'{f} gave {h} a lucky {t.pick(words.TRINKETS)}. "Hold this, and breathe."',
        )
    else:
        t.say(
            f'{h.His} {g.kind} knelt down. "Close your eyes and take three slow breaths," said {g}.',
            f'"Even I was nervous when I was little," {h.his} {g.kind} said. "Nobody has to be perfect."',
        )
        t.say(
            "One breath, two breaths, three breaths. The floor felt solid again.",
            f'"What if I make a mistake?" asked {h}. "Then you smile and go on," said {g}.',
        )
    t.say(
        f"{h} stepped into the light. The start was a bit shaky.",
        f"{h} walked out, looked up and began.",
    )
    t.say(
        f"Then {h.his} {t.hand}s stopped trembling, and soon {h.he} forgot to be afraid.",
        f"It got better with every second, and before long {h.he} even enjoyed it.",
        f"In the middle there was one tiny mistake, but {h} smiled and went on, and nobody minded.",
    )
    t.paragraph()
    t.say(
        "At the end, it was silent for a second. Then everybody clapped and cheered.",
        f"The applause was as loud as thunder, and somebody threw {t.pick(words.FLOWERS)}.",
        f'{capital(t.everyone)} jumped up and shouted, "Bravo!"',
    )
    t.say(
        f"{h} bowed so low that {h.his} nose almost touched the floor.",
        f'"Did you hear that?" {h} asked. "They liked it!"',
        f"{h} was prouder than ever before.",
    )
    t.say(
        f'"I knew that you could do it," said {g}.',
        f'"The butterflies are still there," said {h}, "but now they fly in a row."',
        f"{h} learned that courage is being afraid and doing it anyway.",
        f'"When is the next show?" {h} asked on the way home.',
    )
    t.bedtime()


def new_food(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    food, next_food = t.pick_two(words.NEW_FOODS)
    meal = t.pick(words.MEALS)
    t.opening()
    t.say(
        f"{h} ate {meal} almost every day and did not want to try anything else.",
        f"{h} liked {meal}, and only {meal}.",
        f'If there was something new on the plate, {h} always said, "Yuck!"',
    )
    t.paragraph()
    t.say(
        f"{t.pick(words.DAYS)}, {h.his} {g.kind} put a plate of {food} on the table.",
        f"{t.pick(words.DAYS)}, there was something new on the table. {h.His} {g.kind} had made a bowl of {food}.",
        f"{t.pick(words.DAYS)}, {h} smelled something strange in the kitchen. {h.His} {g.kind} was cooking {food}.",
    )
    t.say(
        f'"I do not like that," said {h} and pushed the plate away.',
        f'{h} crossed {h.his} arms. "It looks funny, and it smells funny."',
        f"{h} pressed {h.his} lips together and shook {h.his} head.",
    )
    t.say(
        f'"How do you know? You have never tried it," said {g}.',
        f"\"Just one little bite,\" said {g}. \"If you don't like it, you can stop.\"",
        f'{g} did not get angry. "Maybe another time," {g.he} said calmly.',
    )
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f'Then {t.friend_called} came to visit. "Oh, {food}! How nice!" said {f} and ate two helpings.',
            f'That day {t.friend_called} was a guest. {f} took a big bite and said, "Delicious! May I have yours?"',
        )
        t.say(
            f"{h} watched every bite. Could it really be so good?",
            f'{h} was surprised. "What does it taste like?" {h.he} asked. "Like a sunny garden," said {f}.',
        )
    else:
        t.say(
            f'The next day, {g} said, "Come with me," and took {h} into the kitchen. "This time we will cook it together."',
            f'The next day, {g} gave {h} a small apron. "Today you are the cook," {g} said.',
        )
        t.say(
            f"{h} washed, stirred and sprinkled a pinch of salt. {h.He} had never cooked before.",
            f"{h} mixed and mashed and wiped {h.his} nose with a floury {t.hand}.",
        )
    t.say(
        f"At last {h} closed both eyes and took a tiny bite, no bigger than a bean.",
        f"Slowly, very slowly, {h} put a crumb of it on {h.his} tongue.",
        f"{h} pinched {h.his} nose and tasted it.",
    )
    if t.chance(0.75):
        t.say(
            f'{h.His} eyes popped open. "It is good!" {h.he} said.',
            f"{h} chewed and chewed. Then {h.he} took another bite, and another.",
            f'"Hmm," said {h}. "Hmm! Is there any more?"',
        )
        t.paragraph()
        t.say(
            f"Soon the plate was empty, and {h} licked the spoon.",
            f"{g} smiled and filled the bowl again.",
        )
    else:
        t.say(
            f'"It is not my favorite," said {h}, "but it is not as bad as I thought."',
            f'{h} made a face. "I still like {meal} better, but I tried it!"',
        )
        t.paragraph()
        t.say(
            f'"That is all I asked for," said {g}. "You were brave."',
            f'{g} laughed. "Now you know, and knowing is better than guessing."',
        )
    t.say(
        f"From that day on, {h} tried one new thing every week.",
        f"{h} wrote a list of all the things to try next.",
        f"The next week, {h} even tried {next_food}.",
    )
    t.say(
        f"{h} learned that you cannot know a taste before you try it.",
        "Who knows how many good things are still waiting to be tasted?",
        f"And {t.friend_called} was invited to dinner every Friday.",
    )
    t.bedtime()


def building_together(t: Teller) -> None:
    h, f, g = t.hero, t.friend, t.grownup
    thing, stuff, shape, disaster = t.pick(words.BUILDS)
    color = t.pick(words.COLORS)
    t.opening()
    t.paragraph()
    day = {"snowman": "One winter morning", "sandcastle": "One day at the beach"}.get(thing) or t.pick(words.DAYS)
    t.say(
        f"{day}, {h} and {t.friend_called} wanted to build the best {thing} in the world.",
        f"{day}, {h} said to {t.friend_called}, \"Let's build a {thing}!\"",
    )
    t.say(
        f'"I want to be the boss," said {h}. "No, I want to be the boss," said {f}.',
        f'"It should be big," said {h}. "It should be beautiful," said {f}. They began to argue.',
        f'"My way is better," {h} said. "My way is much better," {f} said.',
    )
    t.say(
        f"So each of them built alone. {h} piled up {stuff} on one side, and {f} did the same on the other.",
        f"{h} pulled to the left, and {f} pulled to the right.",
        "They did not talk to each other, and both of them were in a hurry.",
    )
    t.say(
        f"For a short time it had {shape}. But then {disaster}.",
        f"It already had {shape} when, all at once, {disaster}.",
    )
    t.paragraph()
    t.say(
        f'"That was your fault!" cried {f}. "No, yours!" {h} shouted.',
        f'{h} threw up {h.his} arms. "Now look at it!"',
        f"They sat down, back to back, feeling {t.pick(words.SAD)}.",
    )
    if t.chance(0.5):
        t.say(
            f'{h.His} {g.kind} walked by and asked, "Can one {t.hand} clap?" {h} tried it. It could not.',
            f'Then {h.his} {g.kind} gave each of them one end of a long board. "Try to carry it alone," said {g}. Neither of them could.',
        )
    else:
        t.say(
            f'Some ants were carrying a crumb nearby. "Look," said {f}, "they all pull the same way."',
            f"After a while, {h} peeked over {h.his} shoulder. {f} was peeking, too. Both of them had to laugh.",
        )
    t.say(
        f'"I am sorry," said {h}. "Your idea was good." "Yours was good, too," said {f}.',
        f'"Shall we start over?" asked {f}. "Yes, but together," said {h}.',
    )
    t.paragraph()
    t.say(
        f"This time {h} held things steady while {f} put them in place.",
        f"Now {h} planned, and {f} measured, and they took turns with the hard parts.",
        "They listened to each other and made every part strong.",
    )
    t.say(
        f"By evening, it was done. It was big, and it was beautiful, with {a(color)} flag on top.",
        f"When they were finished, it was the finest {thing} that anyone had ever seen.",
    )
    t.say(
        f'"Who built this?" everyone asked. "We did!" said {h} and {f} at the same time.',
        f'"How did you make it so well?" asked {g}. "With four {t.hand}s," said {h}.',
        f"{h} and {f} stood side by side, {t.pick(words.GLAD)} and tired.",
    )
    t.say(
        "They had learned that two heads are better than one, if they nod together.",
        "Working together is slower at the start and faster at the end.",
        "The next day, they built another one, and they did not argue even once.",
    )


PLOTS = (
    lost_toy, sharing_food, fear_of_dark, new_friend, learning_skill, rainy_day, helping_animal, broken_thing,
    treasure_hunt, promise_kept, mistake_and_apology, race, planting_seed, new_sibling, getting_lost, big_storm,
    surprise_party, stage_fright, new_food, building_together,
)
