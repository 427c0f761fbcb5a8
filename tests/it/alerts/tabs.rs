//! Tabs that count what is unread by themselves, from a read and the events that followed.

use std::collections::BTreeSet;

use crewcast::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{acknowledge, inbox, member, raise};
use crate::support::{Client, Stream, connect, database, number, server, token};

/// A tab: what is unread by its own count, from a read and the events that followed.
struct Tab {
    unread: BTreeSet<String>,
    at: String,
}

/// The same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
}

impl Tab {
    async fn open(client: &Client) -> Self {
        let (at, inbox) = client.read("/v1/alerts?limit=200").await;
        let ids = inbox["items"].as_array().unwrap().iter().map(|alert| alert["id"].as_str().unwrap().to_owned());
        let unread: BTreeSet<String> = ids.collect();
        assert_eq!((unread.len(), &inbox["nextCursor"]), (inbox["unread"].as_u64().unwrap() as usize, &Value::Null));
        Self { unread, at }
    }

    /// Follows until the end is told, cut now and then and resumed on the other node.
    async fn follow(mut self, nodes: [Client; 2], rooms: String, seed: u64) -> usize {
        let mut random = Random(seed);
        for turn in 0.. {
            let mut stream = nodes[turn % 2].stream(&rooms, &self.at).await;
            stream.expect("stream:open").await;
            for _ in 0..random.below(12) {
                if self.is_at_end(&mut stream).await {
                    return self.unread.len();
                }
            }
        }
        unreachable!("the end is told")
    }

    async fn is_at_end(&mut self, stream: &mut Stream) -> bool {
        let frame = stream.next().await.unwrap();
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        self.at = frame.id;
        match frame.event.as_str() {
            "alert:new" => assert!(self.unread.insert(data["id"].as_str().unwrap().to_owned()), "told once"),
            "alert:acknowledged" => {
                for id in data["alertIds"].as_array().unwrap() {
                    assert!(self.unread.remove(id.as_str().unwrap()), "acknowledged after it was told, and once");
                }
                assert_eq!(data["unread"].as_u64().unwrap() as usize, self.unread.len(), "what a tab has counted");
            }
            "test:end" => return true,
            other => panic!("{other}: {data}"),
        }
        false
    }
}

#[tokio::test]
async fn every_tab_counts_what_is_unread_exactly_whatever_is_raised_and_acknowledged_meanwhile() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let (ana, max) = (Client::admin(&nodes[0]), token("max", &[Role::Manager]));
    let project = ana.project("north").await;
    ana.send(Method::PUT, &format!("/v1/projects/{project}/members/eva"), json!({ "role": "viewer" })).await;
    let evas = || [member(&nodes[0], "eva", &["west"]), member(&nodes[1], "eva", &["west"])];
    let (of_project, rooms) =
        (format!("project:{project}"), format!("rooms=company,division:west,project:{project}&types=alert,test"));
    let first = Tab::open(&evas()[0]).await;
    let mut tabs = JoinSet::new();
    tabs.spawn(first.follow(evas(), rooms.clone(), 1));
    let mut writers = JoinSet::new();
    for writer in 0..6_usize {
        let (max, project) = (Client::new(&nodes[writer % 2], &max), of_project.clone());
        writers.spawn(async move {
            let audiences: [&[&str]; 6] = [
                &["company"],
                &["division:west", "company"],
                &[&project],
                &["user:eva"],
                &["division:north", "user:eva", &project],
                &["division:north"],
            ];
            for nth in 0..40 {
                raise(&max, "x", audiences[(writer + nth) % audiences.len()]).await;
            }
        });
    }
    for tab in 0..4 {
        let (eva, mut random) = (evas()[tab % 2].clone(), Random(77 + tab as u64));
        writers.spawn(async move {
            for _ in 0..25 {
                let (_, inbox) = eva.read("/v1/alerts?limit=20").await;
                let items = inbox["items"].as_array().unwrap();
                let id = if random.below(8) == 0 || items.is_empty() {
                    "all"
                } else {
                    items[random.below(items.len())]["id"].as_str().unwrap()
                };
                assert_eq!(acknowledge(&eva, id).await.0, StatusCode::OK);
            }
        });
    }
    for seed in 2..7 {
        tabs.spawn(Tab::open(&evas()[0]).await.follow(evas(), rooms.clone(), seed));
        writers.join_next().await.unwrap().unwrap();
    }
    writers.join_all().await;
    let end = json!({ "type": "test:end", "data": {} });
    ana.send(Method::POST, "/v1/rooms/company/events", end).await;
    let counted = tabs.join_all().await;
    let (_, unread) = inbox(&evas()[1]).await;
    assert_eq!(counted, vec![unread as usize; 6]);
    let by_definition = "select count(distinct number) from crewcast.alert_rooms
        where room in ('company', 'division:west', 'user:eva', (select 'project:' || id from crewcast.projects))
          and number not in (select number from crewcast.acknowledgements where sub = 'eva')";
    assert_eq!(number(&mut connect(&url).await, by_definition).await, unread);
    for node in nodes {
        node.stop().await;
    }
}
