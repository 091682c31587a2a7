"""The demo's prompts: twelve topics, ten subjects and four openings each.

Eight topics are for training, one for choosing the weight, three for the final table. Openings are neutral: what
follows may go well or badly.
"""

from itertools import product

TOPICS: dict[str, tuple[str, list[str], list[str]]] = {
    # topic: (split, openings, subjects)
    "travel": (
        "train",
        ["We took {} last spring, and", "After two days on {}, my sister said",
         "People ask me about {}, and I tell them", "The thing about {} is that it"],
        ["the night train to Lisbon", "the ferry to the islands", "the bus across the desert", "a rented van",
         "the mountain railway", "the slow boat down the river", "a walking tour of the old town",
         "the coastal road", "an overnight flight", "the cable car"],
    ),
    "food": (
        "train",
        ["I ordered {} at the corner place, and it", "My grandmother's opinion of {} was that",
         "When the waiter brought {}, everyone", "Nobody at our table had tried {} before, but"],
        ["the mushroom soup", "grilled octopus", "the plum cake", "a bowl of ramen", "the lentil stew",
         "pickled cabbage", "the house curry", "a slice of rye bread", "the seafood rice", "fried green tomatoes"],
    ),
    "work": (
        "train",
        ["On Monday our team learned that {}", "My manager wrote that {}",
         "Looking back at the year when {}, I think", "At lunch we talked about how {}, and"],
        ["the office would move", "the project had a new owner", "the reports were due early",
         "the budget had changed", "everyone would work in shifts", "the client wanted a second version",
         "the old system was switched off", "two departments would merge", "the review was finished",
         "the night shift needed people"],
    ),
    "school": (
        "train",
        ["The {} this term was", "Our teacher told us the {} would be",
         "After the {}, most of the students", "When I think of the {}, I remember"],
        ["chemistry exam", "school play", "field trip to the harbour", "history project", "spelling contest",
         "first day of class", "music lesson", "science fair", "reading club", "swimming course"],
    ),
    "weather": (
        "train",
        ["The forecast promised {}, so we", "All week there was {}, and the town",
         "My neighbour says that {} makes her feel", "Because of {}, the garden party"],
        ["a long dry spell", "heavy snow", "the first frost", "a warm wind from the south", "thick fog",
         "summer rain", "a thunderstorm", "clear skies", "sleet and hail", "an early thaw"],
    ),
    "sports": (
        "train",
        ["With ten minutes left, the {}", "Local fans describe the {} as",
         "The coach of the {} said after the game that", "Last season the {} had"],
        ["women's football team", "rowing club", "young goalkeeper", "village cricket side", "relay runners",
         "chess champions", "basketball squad", "cycling team", "hockey captain", "climbing group"],
    ),
    "technology": (
        "train",
        ["I have used {} for a month now, and", "The first review of {} says that it",
         "My father tried {} and told me", "Our office replaced everything with {}, which"],
        ["the new phone", "a voice assistant", "the budget laptop", "an electric scooter", "the robot vacuum",
         "a smart thermostat", "the translation app", "a pair of wireless headphones", "the online banking site",
         "a secondhand printer"],
    ),
    "film": (
        "train",
        ["The film about {} opens quietly, and then", "Critics called the story of {}",
         "I watched the series about {} last night, and", "The ending, in which we see {} again, made me"],
        ["the lighthouse keeper", "two rival bakers", "a retired detective", "the lost orchestra",
         "a family of beekeepers", "the last mail pilot", "a young translator", "the clockmaker's daughter",
         "an astronaut on leave", "the village doctor"],
    ),
    "pets": (
        "validation",
        ["We brought home {} in October, and", "The vet looked at {} and said",
         "Living with {} means that", "My brother wrote a letter about {}, saying"],
        ["a deaf cat", "an old greyhound", "two parrots", "a rescue pony", "a nervous terrier", "three goldfish",
         "a tortoise", "a litter of kittens", "the neighbour's rabbit", "a sheepdog"],
    ),
    "home": (
        "test",
        ["When we moved into {}, we found", "The landlord of {} told us that",
         "Our first winter in {} was", "Friends who visit {} always say"],
        ["the flat above the bakery", "a farmhouse", "the yellow cottage", "a houseboat", "the attic room",
         "a shared house by the station", "the tower block", "a converted barn", "the corner apartment",
         "a cabin in the woods"],
    ),
    "music": (
        "test",
        ["The concert by {} began late, and", "On their second album, {}",
         "I listened to {} on the way home and felt", "A reviewer wrote that {}"],
        ["the brass quartet", "a street violinist", "the children's choir", "the jazz trio", "an unknown pianist",
         "the folk singer from the north", "a punk band", "the organist", "the drum ensemble", "a touring opera"],
    ),
    "health": (
        "test",
        ["The nurse explained that {}", "Since I heard that {}, I",
         "My friend called to tell me that {}, and", "The letter from the clinic said that {}, so"],
        ["the test results were in", "the treatment would take a month", "my appointment had moved",
         "the knee could be operated on", "the new glasses had arrived", "the waiting list was open",
         "the course of tablets was over", "the physiotherapist had time", "the scan was finished",
         "the vaccine was available"],
    ),
}


def prompts(split: str) -> list[dict[str, str]]:
    """All prompts of a split ("train", "validation" or "test"), with their topic."""
    return [
        {"topic": topic, "prompt": opening.format(subject)}
        for topic, (topic_split, openings, subjects) in TOPICS.items()
        if topic_split == split
        for subject, opening in product(subjects, openings)
    ]
