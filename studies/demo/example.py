import midcourse

lm = midcourse.LanguageModel.load("smollm2")
reward = midcourse.load_reward("runs/demo/reward")
prompt = "The concert by the jazz trio began late, and"

for weight in (0, 3, 6):
    (text,) = midcourse.generate(lm, [prompt], reward, reward_weight=weight, max_new_tokens=24, seed=2)
    print(f"{weight}: {text.guidance_kl:4.1f} nats |{text.text}")
print([f"{r:+.2f}" for r in reward.score([prompt], [" the crowd loved it."])[0].rewards])
